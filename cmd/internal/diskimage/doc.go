// Package diskimage mounts the file systems of a disk image, raw or qcow2, as its own fstab says, so that a program can work on
// the tree. All mounts are in a mount namespace of this process: they end with it, however it ends.
//
// Volumes of LVM are found by their metadata, where each lies in the image in one piece. Nothing of this machine's LVM is
// asked or changed.
//
// Not here: volumes of LVM in several pieces, thin or mirrored ones, encryption, RAID, and subvolumes of btrfs other than the
// default one. They are refused by name.
package diskimage

import "errors"

// ErrInUse is the error of an image that another program has open for writing.
var ErrInUse = errors.New("the image is in use")

// ErrDirty is the error of a file system that was not unmounted.
var ErrDirty = errors.New("the file system was not unmounted")

// Options say how an image is mounted.
type Options struct {
	// Dir is the empty directory below which file systems are mounted. It must be there, and is empty again afterwards, also
	// after a kill.
	Dir string
	// ReadOnly mounts everything read-only; the image is then not changed by a byte.
	ReadOnly bool
	// Recover accepts file systems that were not unmounted, as those of a run that was killed; mounting repairs them by their
	// journals. Without it they are refused.
	Recover bool
	// Writing is called when the image is locked and about to be mounted for writing. Optional. An error of it ends Open.
	Writing func() error
}
