// Package qemunbd has QEMU's qemu-nbd serve an image in one of QEMU's formats (qcow2, vmdk, vdi,
// vhdx, ...) to the driver nbd: it starts the program on a private socket, watches it, and ends it.
// Backing files, compression and locks are qemu-nbd's affair.
//
// # How long it runs
//
// qemu-nbd runs while the disk is open. In between the image is not locked, so that qemu-img can be
// used on it, and that a guest can be migrated between two hosts that share it. The driver nbd
// starts it before it connects (Server.Start), also when it has died meanwhile, and ends it when
// the last connection of a disk that was closed has gone (Server.Stop).
//
// A Server holds a connection of its own while the program runs. By it the Server sees that the
// image could be opened and is served, without asking again and again; and as qemu-nbd ends with
// its last client, it does not outlive this process, whatever becomes of that. Beside that it is
// told to end when this process does (PR_SET_PDEATHSIG): by SIGTERM, so that what it has answered
// and keeps in its caches gets to the image. A guest that goes on with the next vdev does not
// expect that anything was lost.
//
// # The socket
//
// It is bound in a new folder that only this user can enter, and its name and the folder are
// removed at once: what is left is a descriptor of this process, through which the driver connects
// (/proc/self/fd). Nothing stays behind even after SIGKILL. The program inherits the listening
// socket (LISTEN_FDS, sd_listen_fds(3)). Each process gets one of its own, so that nobody waits in
// the queue of one that has died.
//
// # What a death loses
//
// qemu-nbd writes an image's data to the host's page cache when it answers a write, but keeps the
// image's own tables in memory until a flush. When it is killed, writes that it has answered since
// may be gone, even though the host lives on. Start says so by another generation. Raw images have
// no tables: their generation stays. At this process's end, when nobody is left who could say so,
// the program is not killed but left to itself, if it takes long; its lock on the image keeps
// others from being overtaken.
//
// When this process is killed alone, qemu-nbd ends in order and all is in the image. When it is
// killed too, as with a container or a control group, what it had in memory is lost, and whoever
// serves the image next cannot see that in it. So qemu-nbd is started by a witness (Witness), a
// process that outlives this one, and writes into a record (Config.Records) that it has ended in
// order. The witness takes qemu-nbd with it when it is killed. Server.Ended reads the records of
// others.
//
// # Formats
//
// What a guest writes to a raw image may look like an image of another format, whose header names a
// backing file: some file of the host that the guest wants to read. So the content does not decide:
// Detect goes by the name, says where the content looks like something else, and refuses what is
// named like a format and does not begin like it.
//
// # Other files
//
// An image's header decides what else qemu-nbd opens, and the image may come from anywhere. So it
// is read here first, with those of the files that it leads to (follow), and Config.Chain says what
// they may be: backing files in the image's own folder by default. Only regular files and block
// devices are opened; all are told (Config.Note), and so is what a start waits for.
//
// # Snapshots
//
// With Config.Snapshot the image is only read. What is written goes to an overlay, a qcow2 image
// without a name in $TMPDIR or /var/tmp, which is gone with the Server. A guest that has written
// there does not go on with another one's overlay (Server.Holding).
package qemunbd
