package outputs

import "testing"

// Timings that are well known: those of VESA's own table for reduced blanking, version 2, as X.Org's cvt and others print them.
func TestCVT(t *testing.T) {
	for _, c := range []struct {
		width, height uint32
		refresh       float64
		want          timing
	}{
		{1920, 1080, 60, timing{133320000, 1928, 1960, 2000, 1097, 1105, 1111, true, false, 1920, 1080}},
		{2560, 1440, 60, timing{234590000, 2568, 2600, 2640, 1467, 1475, 1481, true, false, 2560, 1440}},
		{3840, 2160, 60, timing{522614000, 3848, 3880, 3920, 2208, 2216, 2222, true, false, 3840, 2160}},
	} {
		if got, ok := cvt(c.width, c.height, c.refresh); !ok || got != c.want {
			t.Errorf("%dx%d at %v Hz:\n%+v, not\n%+v", c.width, c.height, c.refresh, got, c.want)
		}
	}
	// Whatever the size, the parts are in their order, and the refresh rate is what was asked for.
	for _, w := range []uint32{64, 641, 1366, 5119, 16384} {
		for _, h := range []uint32{64, 479, 768, 16384} {
			for _, hz := range []float64{24, 59.94, 144} {
				m, ok := cvt(w, h, hz)
				if !ok {
					if float64(w)*float64(h)*hz < 4e9 {
						t.Errorf("%dx%d at %v Hz: none", w, h, hz)
					}
					continue
				}
				if m.horizontalPixels != uint16(w) || m.verticalLines != uint16(h) ||
					m.hSyncStart <= m.horizontalPixels || m.hSyncEnd <= m.hSyncStart || m.hTotal <= m.hSyncEnd ||
					m.vSyncStart <= m.verticalLines || m.vSyncEnd <= m.vSyncStart || m.vTotal <= m.vSyncEnd {
					t.Errorf("%dx%d: %+v", w, h, m)
				}
				got := float64(m.clock) / float64(m.hTotal) / float64(m.vTotal)
				if got > hz || got < hz-0.5 {
					t.Errorf("%dx%d at %v Hz has %v", w, h, hz, got)
				}
			}
		}
	}
}
