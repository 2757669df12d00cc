package facts

// BootID tells this boot of the kernel from the next; empty where it cannot be read.
func BootID() string { return firstLine("/", "proc/sys/kernel/random/boot_id") }
