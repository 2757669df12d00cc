package fsys

func (d *realDir) begin(name string, meta Meta, aside bool) (making, error) {
	return beginNamed(d, name, meta, aside)
}
