package main

import (
	"github.com/spf13/cobra"

	"vdev/internal/spec"
)

const blkName = "blk"

func newBlkCommand() *cobra.Command {
	f, p := spec.NewDiskFlags(), spec.NewProcessFlags()
	cmd := &cobra.Command{
		Use:   blkName + " (--socket-path PATH | --fd N) (--blk-file FILE | --driver NAME,option=value,...)",
		Short: "Serve a disk (virtio-blk)",
		Long: `Serves one disk to one virtual machine at a time, until it is told to end.

What stands behind the disk is a driver:

  vnd,file=FILE[,read-only][,direct][,bounce][,no-discard]
          an image file, or a block device of the host; --blk-file FILE is short for it
  qemu,file=FILE[,format=FORMAT][,snapshot][,read-only][,direct][,no-discard]
      [,detect-zeroes=off|on|unmap][,backing-chain=folder|files|any][,connections=N][,program=PATH]
          an image in one of QEMU's formats (qcow2, vmdk, vdi, vhdx, ...), perhaps with backing files;
          --blk-file disk.qcow2 is short for it. vdev runs qemu-nbd for it while a guest uses the disk.
          The image's header names its backing files. By default only those in the image's own folder
          are opened. backing-chain=files allows all local files, and data files, which the guest may
          write to. backing-chain=any also allows what is no local file, and a VMDK of several files or
          with a parent. An image whose name ends like none of these formats is raw
  md,size=BYTES[,file=FILE][,read-only]
          memory of vdev's own, forgotten when vdev ends; FILE is what it holds at first
  nbd,uri=URI[,connections=N][,reconnect-delay=TIME][,unflushed=auto|lost|kept][,read-only]
          what an NBD server exports: nbd://HOST[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH,
          with nbds for TLS. When the server is gone, requests wait TIME for it (default 0s).
          A server that was started anew may have lost writes that it had answered and not flushed.
          Then every request fails until the guest is reset. With unflushed=auto, vdev knows the
          server by the process that made a Unix socket; with any other socket it only warns. With
          lost, it assumes a loss whenever the connection breaks and the server is not known to be
          the same. With kept it never does: use that for a server that keeps nothing in its own
          memory, such as nbdkit's file plugin or qemu-nbd with a raw image.
          vdev keeps a connection while no guest uses the disk, since some servers end with their
          last client (qemu-nbd without --persistent). A server that takes a single client (qemu-nbd
          without --shared) works, but vdev cannot ask it for a new size. Where the server allows
          it there are up to 4 connections, or N (1 to 16). If one of them does not show what
          another one has written, every request fails. Do not use an export of which each
          connection has its own (nbd-server's temporary and copyonwrite): vdev connects anew when
          the guest resets the device, when a connection is lost, and with TLS after a pause, and
          then the disk is empty, or as it was at first
  null,size=BYTES[,read-only]
          nothing: writes are forgotten, and reads leave memory as it was
  fault[,rule=RULE]...[,cache=BYTES][,no-cancel],lower=NAME,...
          one of the above with its options, and what storage does to it on a bad day

A RULE is ACTION:OPERATIONS[:key=value]..., for example

  delay:read+write:time=1ms-20ms:seed=7       they take longer, by chance
  hang:write:blocks=0-7:count=1               the next write there never ends, unless cancelled
  hang:flush:uncancellable                    no flush ends, not even when it is cancelled
  error:read:errno=EIO:prob=0.01:seed=1       one read in a hundred fails
  short:write                                 a write ends before everything is written
  crash:flush:skip=9:count=1:keep=0.5:off     at the 10th flush the power fails, until the disk
                                              is started again; half of the sectors in the cache
                                              (cache=BYTES) are lost

The operations are read, write, flush, discard, zeroes (together: any), open, close and
cancel. The keys blocks (of 512 bytes), skip, count, prob and seed go with every action.
no-cancel makes a driver without d_cancel.

vdev finds the format of an image by its content, if the file's name says the same: a guest may
write anything into a raw image. With a snapshot the image stays as it is: what the guest writes is
forgotten when vdev ends.

A size may have a unit: 512M, 10G, 1.5T. A comma in a file's name is written twice.

An image is locked while a guest uses it, as QEMU's tools lock theirs: vdev, QEMU and
qemu-img refuse an image that another of them has open.

Signals: SIGTERM and SIGINT end vdev. SIGHUP makes it look at the image's size again, and
tell the guest of a new one. SIGUSR1 prints the last events of the device's life, and SIGQUIT
its status as well. With --control, 'vdev ctl' does the same and more.`,
		Example: `  vdev blk --socket-path /run/vm1.sock --blk-file disk.img
  vdev blk --socket-path /run/vm1.sock --driver md,size=1G --trace
  vdev blk --socket-path /run/vm1.sock --blk-file disk.img --control /run/vm1.ctl

  qemu-system-x86_64 -machine q35,memory-backend=mem -m 1G \
      -object memory-backend-memfd,id=mem,size=1G,share=on \
      -chardev socket,id=disk0,path=/run/vm1.sock \
      -device vhost-user-blk-pci,chardev=disk0`,
		Args: noArguments("; the image is given with --blk-file"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			device, err := f.Config(cmd.Flags().Changed)
			if err != nil {
				return err
			}
			return serveOne(cmd, p, device)
		},
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	f.Register(fs)
	p.Register(fs)
	completeDisk(cmd, f)
	completeProcess(cmd, p)
	return cmd
}

// completeDisk completes the flags that describe a disk.
func completeDisk(cmd *cobra.Command, f *spec.DiskFlags) {
	completeChoices(cmd, f.Choices())
	must(cmd.RegisterFlagCompletionFunc("driver", cobra.FixedCompletions(
		[]string{"vnd,file=", "md,size=", "nbd,uri=", "qemu,file=", "null,size=", "fault,rule="}, cobra.ShellCompDirectiveNoSpace|cobra.ShellCompDirectiveNoFileComp)))
	completeNothing(cmd, "fd", "num-queues", "seg-max", "serial", "cancel-after")
}
