package clip

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"image"
	"image/png"
	"math/rand/v2"
	"testing"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// lyingPNG is a PNG of 100 bytes whose header says that it has size x size pixels.
func lyingPNG(size uint32) []byte {
	head := binary.BigEndian.AppendUint32([]byte("IHDR"), size)
	head = append(binary.BigEndian.AppendUint32(head, size), 8, 6, 0, 0, 0)
	b := append(bytes.Clone(pngSignature), 0, 0, 0, 13)
	b = binary.BigEndian.AppendUint32(append(b, head...), crc32.ChecksumIEEE(head))
	return append(b, make([]byte, 100-len(b))...)
}

// lyingBMP is a BMP of a header alone.
func lyingBMP(width, height uint32) []byte {
	b := append([]byte("BM"), make([]byte, 52)...)
	binary.LittleEndian.PutUint32(b[10:], 54)
	binary.LittleEndian.PutUint32(b[14:], 40)
	binary.LittleEndian.PutUint32(b[18:], width)
	binary.LittleEndian.PutUint32(b[22:], height)
	b[26], b[28] = 1, 32
	return b
}

func TestImagesAreChecked(t *testing.T) {
	whole, _ := picture(t, 3, 3)
	flipped := bytes.Clone(whole)
	flipped[len(flipped)-20] ^= 1
	for name, c := range map[string]struct {
		data []byte
		code string
	}{
		"a PNG":                        {whole, ""},
		"100 bytes that say 65535":     {lyingPNG(65535), "too_large"},
		"100 bytes that say 2^32-1":    {lyingPNG(1<<32 - 1), "invalid"},
		"100 bytes that say 0":         {lyingPNG(0), "invalid"},
		"a PNG without pixels":         {lyingPNG(10), "invalid"},
		"a PNG that is cut":            {whole[:len(whole)-5], "invalid"},
		"a PNG with a wrong bit":       {flipped, "invalid"},
		"a signature":                  {pngSignature, "invalid"},
		"a BMP of a header":            {lyingBMP(4000, 4000), "invalid"},
		"a BMP that says 65535":        {lyingBMP(65535, 65535), "too_large"},
		"a BMP that is larger upwards": {lyingBMP(10000, 5000), "too_large"},
		"BM":                           {[]byte("BM"), "invalid"},
		"a JPEG":                       {[]byte("\xff\xd8\xff\xe0"), "unsupported"},
		"nothing":                      {nil, "unsupported"},
	} {
		if _, err := ToPNG(c.data); fault.Code(err) != c.code {
			t.Errorf("%s: %v, want %q", name, err, c.code)
		}
	}
}

func TestPrepare(t *testing.T) {
	for name, c := range map[string]struct {
		contents []Content
		code     string
	}{
		"nothing":                {nil, "invalid"},
		"text":                   {[]Content{{Text, []byte("x")}}, ""},
		"empty text":             {[]Content{{Text, nil}}, ""},
		"text that is not UTF-8": {[]Content{{Text, []byte("\xff")}}, "invalid"},
		"HTML that is not UTF-8": {[]Content{{HTML, []byte("\xff")}}, "invalid"},
		"twice":                  {[]Content{{Text, nil}, {Text, nil}}, "invalid"},
		"too large":              {[]Content{{HTML, make([]byte, 16<<20)}}, "too_large"},
		"too large together":     {[]Content{{HTML, make([]byte, 8<<20)}, {Text, make([]byte, 8<<20)}}, "too_large"},
		"an unknown kind":        {[]Content{{"video", nil}}, "unsupported"},
		"files":                  {[]Content{{Files, []byte("# x\nfile:///a\nhttps://b/c")}}, ""},
		"no files":               {[]Content{{Files, []byte("# x\n\n")}}, "invalid"},
		"a path":                 {[]Content{{Files, []byte("/etc/passwd")}}, "invalid"},
		"a control character":    {[]Content{{Files, []byte("file:///a\x00b")}}, "invalid"},
	} {
		if _, err := Prepare(c.contents); fault.Code(err) != c.code {
			t.Errorf("%s: %v, want %q", name, err, c.code)
		}
	}
	got, err := Prepare([]Content{{Files, []byte("file:///a\n\nfile:///b")}})
	if err != nil || string(got[0].Data) != "file:///a\r\nfile:///b\r\n" {
		t.Errorf("%q, %v", got[0].Data, err)
	}
}

func TestTextOfHTML(t *testing.T) {
	for source, want := range map[string]string{
		"a&lt;b":                                 "a<b",
		"<p>a</p><p>b</p>":                       "a\nb",
		"a<br/>b":                                "a\nb",
		"<script>x < y</script>z":                "z",
		"<STYLE>p{}</style ><b>z</b>":            "z",
		"<!-- <p>no</p> -->yes":                  "yes",
		"<table><tr><td>1</td><td>2</td></tr>":   "1\t2",
		"a\n  b":                                 "a   b",
		"<":                                      "",
		"a<script>":                              "a",
		"<a href='x>y'":                          "y'",
		"1 < 2":                                  "1",
		"<div><div>x":                            "x",
		"\u00e9&eacute;&#233;":                   "\u00e9\u00e9\u00e9",
		"<head><title>t</title></head><body>b</": "b",
	} {
		if got := string(textOf([]byte(source))); got != want {
			t.Errorf("%q: %q, want %q", source, got, want)
		}
	}
}

// What is HTML to others must end here, whatever it is, and be UTF-8.
func FuzzTextOf(f *testing.F) {
	f.Add("<p>a</p>")
	f.Add("<script")
	f.Fuzz(func(t *testing.T, source string) {
		if got := textOf([]byte(source)); len(got) > 4*len(source)+4 {
			t.Errorf("%d bytes of %d", len(got), len(source))
		}
	})
}

// picture makes a PNG of random pixels, and returns them.
func picture(t testing.TB, width, height int) ([]byte, image.Image) {
	t.Helper()
	img := image.NewNRGBA(image.Rect(0, 0, width, height))
	r := rand.New(rand.NewPCG(1, 2))
	for i := range img.Pix {
		img.Pix[i] = byte(r.Uint32())
		if i%4 == 3 {
			img.Pix[i] = 255
		}
	}
	var b bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.NoCompression}).Encode(&b, img); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), img
}
