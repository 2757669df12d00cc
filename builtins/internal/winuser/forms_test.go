package winuser

import (
	"bytes"
	"encoding/binary"
	"image"
	"image/color"
	"image/png"
	"strings"
	"testing"
)

// HTML comes back as it was, and its offsets are what Windows says they are.
func TestHTML(t *testing.T) {
	for _, fragment := range []string{"", "<b>ü 😀</b>", "a<!--x-->\r\nb", strings.Repeat("x", 100_000)} {
		data := EncodeHTML(fragment)
		if got, err := DecodeHTML(data); err != nil || got != fragment {
			t.Errorf("%.40q is %.40q: %v", fragment, got, err)
		}
		start, end := offsetIn(data, "StartHTML:"), offsetIn(data, "EndHTML:")
		if end != len(data) || !bytes.HasPrefix(data[start:], []byte("<html>")) || !bytes.HasSuffix(data[:end], []byte("</html>")) {
			t.Errorf("%.40q: HTML from %d to %d of %d", fragment, start, end, len(data))
		}
		if got, err := DecodeHTML(append(data, 0, 'x')); err != nil || got != fragment { // as memory of Windows ends
			t.Errorf("%.40q: %v", got, err)
		}
	}
	// Offsets that lead elsewhere are not followed.
	bad := []byte("Version:0.9\r\nStartFragment:5\r\nEndFragment:99999\r\n<html><!--StartFragment-->x<!--EndFragment--></html>")
	if got, err := DecodeHTML(bad); err != nil || got != "x" {
		t.Error(got, err)
	}
	for _, none := range []string{"", "plain", "StartFragment:9\r\nEndFragment:1\r\n"} {
		if got, err := DecodeHTML([]byte(none)); err == nil {
			t.Errorf("%q is %q", none, got)
		}
	}
}

func FuzzDecodeHTML(f *testing.F) {
	f.Add([]byte("StartFragment:0000000010\r\nEndFragment:0000000012\r\n<x>"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if fragment, err := DecodeHTML(data); err == nil {
			if again, err := DecodeHTML(EncodeHTML(fragment)); err != nil || again != fragment {
				t.Errorf("%q is %q: %v", fragment, again, err)
			}
		}
	})
}

// picture is an image with another colour in each pixel.
func picture(t testing.TB, width, height int) []byte {
	t.Helper()
	img := image.NewNRGBA(image.Rect(0, 0, width, height))
	for y := range height {
		for x := range width {
			img.SetNRGBA(x, y, color.NRGBA{uint8(x * 40), uint8(y * 60), uint8(x ^ y), 255})
		}
	}
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func same(t *testing.T, a, b []byte) {
	t.Helper()
	left, err := png.Decode(bytes.NewReader(a))
	if err != nil {
		t.Fatal(err)
	}
	right, err := png.Decode(bytes.NewReader(b))
	if err != nil || left.Bounds() != right.Bounds() {
		t.Fatal(left.Bounds(), right, err)
	}
	for y := range left.Bounds().Dy() {
		for x := range left.Bounds().Dx() {
			if l, r := color.NRGBAModel.Convert(left.At(x, y)), color.NRGBAModel.Convert(right.At(x, y)); l != r {
				t.Fatalf("pixel %d, %d is %v, want %v", x, y, r, l)
			}
		}
	}
}

// An image comes back as it was, from below, from above, with 24 bits and with masks.
func TestDIB(t *testing.T) {
	want := picture(t, 5, 3)
	dib, err := EncodeDIB(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeDIB(dib)
	if err != nil {
		t.Fatal(err)
	}
	same(t, want, got)

	masked := append([]byte{}, dib[:infoHeader]...)
	masked[16] = compressMask
	masked = binary.LittleEndian.AppendUint32(masked, 0xff)
	masked = binary.LittleEndian.AppendUint32(masked, 0xff00)
	masked = binary.LittleEndian.AppendUint32(masked, 0xff0000)
	for pixels := dib[infoHeader:]; len(pixels) > 0; pixels = pixels[4:] {
		masked = append(masked, pixels[2], pixels[1], pixels[0], 0)
	}
	if got, err = DecodeDIB(masked); err != nil {
		t.Fatal(err)
	}
	same(t, want, got)

	down := append([]byte{}, dib[:infoHeader]...)
	binary.LittleEndian.PutUint32(down[8:], ^uint32(3)+1)
	down[14] = 24
	for y := 2; y >= 0; y-- {
		for x := range 5 {
			at := infoHeader + 4*(y*5+x)
			down = append(down, dib[at:at+3]...)
		}
		down = append(down, 0) // a row has a multiple of four bytes
	}
	if got, err = DecodeDIB(down); err != nil {
		t.Fatal(err)
	}
	same(t, want, got)

	for n := range dib {
		if _, err := DecodeDIB(dib[:n]); err == nil {
			t.Error("an image without its end is taken, at", n)
		}
	}
	binary.LittleEndian.PutUint32(dib[4:], 1<<30)
	if _, err := DecodeDIB(dib); err == nil {
		t.Error("a wide image is taken")
	}
}

func FuzzDecodeDIB(f *testing.F) {
	dib, err := EncodeDIB(picture(f, 2, 2))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(dib)
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<12 {
			return
		}
		if content, err := DecodeDIB(data); err == nil {
			if _, err := png.Decode(bytes.NewReader(content)); err != nil {
				t.Error(err)
			}
		}
	})
}
