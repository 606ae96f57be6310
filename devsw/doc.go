// Package devsw is the device switch: tables of functions for block devices
// (Bdevsw) and character devices (Cdevsw), found by device number, after
// NetBSD's driver(9) and sys/kern/subr_devsw.c.
package devsw
