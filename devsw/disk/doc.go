// Package disk is what the disk drivers have in common: the table of units, the check of a transfer against the size of the
// medium, and raw access through the character device.
//
// Numbering: a unit's minor number is its unit number, for the block and the character device alike. NetBSD's
// DISKUNIT(dev) is minor / MAXPARTITIONS, with the whole disk as partition RAW_PART; there are no partitions here, the
// guest makes its own.
package disk
