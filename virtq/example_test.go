package virtq_test

import (
	"bytes"
	"fmt"
	"io"
	"log"

	"vdev/virtq"
	"vdev/virtq/virtqtest"
)

// A device that gives each request back in capitals, and a driver that makes one.
func Example() {
	mem, err := virtqtest.NewMem(virtqtest.Range{Size: 1 << 16})
	if err != nil {
		log.Fatal(err)
	}
	defer mem.Close()
	driver := virtqtest.New(mem, 16, virtq.FeatureVersion1)

	// What package vhostuser does for a device that it serves.
	memory, err := mem.Memory()
	if err != nil {
		log.Fatal(err)
	}
	defer memory.Release()
	queue, err := virtq.New(memory, driver.Layout())
	if err != nil {
		log.Fatal(err)
	}
	defer queue.Close()

	question := virtqtest.Seg{Addr: mem.Alloc(5, 1), Len: 5}
	answer := virtqtest.Seg{Addr: mem.Alloc(100, 1), Len: 100}
	copy(mem.Bytes(question.Addr, 5), "hello")
	driver.Add([]virtqtest.Seg{question}, []virtqtest.Seg{answer})
	fmt.Println("driver kicks:", driver.Kick())

	var c virtq.Chain
	for {
		ok, err := queue.Pop(&c)
		if err != nil {
			log.Fatal(err)
		}
		if !ok {
			break
		}
		text, _ := io.ReadAll(&c)
		n, _ := c.Write(bytes.ToUpper(text))
		queue.Push(&c, uint32(n))
	}
	fmt.Println("device calls:", queue.Publish())

	_, written, _ := driver.Used()
	fmt.Printf("%s\n", mem.Bytes(answer.Addr, uint64(written)))
	// Output:
	// driver kicks: true
	// device calls: true
	// HELLO
}
