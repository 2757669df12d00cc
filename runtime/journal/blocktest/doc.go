// Package blocktest proves on block devices that the journal survives the loss of power.
//
//	a transaction ─► file system ─► loop ─► FUSE ─► qemu-storage-daemon ─┬─► image
//	  (own process)                                                      └─► write log
//
//	image before + the first n writes, and any of those after the last flush ─► mount ─► Recover ─► compare with what
//	was there before and after each transaction, and with what had been acknowledged when write n was done
//
// A disk keeps what was written before a flush, and any part of what was written since, in any order. The test builds
// what could be left for each moment of a run, lets the real file system and the real journal recover from it, and compares
// every object with its content, owner, mode, attributes and times. A transaction is there whole or not at all, it is
// there if Commit returned, and its reply is stored accordingly.
//
// The same is done with one sync at a time left out: some state must then be wrong, or the test would prove nothing. The
// table of variants lists on which file systems each one is caught. ext4 and xfs commit their whole log with the sync of
// any file, and hide missing syncs that btrfs, which has a log per file, does not.
//
// It needs Linux, root, FUSE and loop devices, and these Debian packages, which it installs where apt-get is there:
// qemu-system-common, fuse3, e2fsprogs, xfsprogs, btrfs-progs.
//
//	go test -tags blocktest -timeout 60m -v ./runtime/journal/blocktest          some minutes
//	go test -tags blocktest -timeout 120m -v ./runtime/journal/blocktest -full   every prefix, more subsets, all variants everywhere
//
// The flag -seed repeats the subsets of an earlier run of the same log; each run logs its seed. The tests without the build
// tag cover the log parser alone.
//
// Not here: power loss of a whole guest, and a kill of the process, which the journal's own tests do at each system call.
package blocktest
