package facts

// BootID identifies this boot of the kernel; empty where it cannot be read.
func BootID() string { return firstLine("/", "proc/sys/kernel/random/boot_id") }
