// Package guestmem maps the memory of a guest that a vhost-user front-end shares, and translates
// addresses into it.
//
// A Region is one mapping, with the descriptor it was made from. A Memory is an immutable set of
// regions: one generation of the guest's memory. When the memory changes, a new Memory is made, and
// whoever still works with addresses of the old one keeps it by a reference. Both count references,
// atomically. A region is unmapped when its creator and the last Memory that has it have released
// it. Only the list of all mappings has a lock.
//
// A Log is the front-end's bitmap of the pages that were written.
//
// A Space counts the mappings of one front-end. It has a bound, and so have all Spaces together.
//
// A View translates on behalf of one goroutine, and remembers the region of the last hit.
package guestmem
