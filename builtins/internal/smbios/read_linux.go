package smbios

import (
	"io"
	"os"
	"path/filepath"
)

// Read returns the tables that the kernel has below a root directory; none where there are none, or others than root may not
// read them.
func Read(root string) []Structure {
	file, err := os.Open(filepath.Join(root, "sys/firmware/dmi/tables/DMI"))
	if err != nil {
		return nil
	}
	defer file.Close()
	tables, err := io.ReadAll(io.LimitReader(file, maxTables))
	if err != nil {
		return nil
	}
	return Parse(tables)
}
