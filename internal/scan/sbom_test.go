package scan

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/CycloneDX/cyclonedx-go"
	spdxjson "github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdxlib"

	"github.com/kilnproject/kiln"
)

func inventory() kiln.Inventory {
	return kiln.Inventory{Image: kiln.DigestOf([]byte("image")), Packages: []kiln.Package{
		{Name: "libssl3", Version: "3.0.9-1", PURL: "pkg:deb/debian/libssl3@3.0.9-1?arch=amd64&distro=debian-12", Ecosystem: "Debian:12", Source: "openssl", Locations: []string{"/var/lib/dpkg/status"}, Layer: kiln.DigestOf(nil)},
		{Name: "left-pad", Version: "1.3.0", PURL: "pkg:npm/left-pad@1.3.0", Ecosystem: "npm", Locations: []string{"/a", "/b"}, Licenses: []string{"WTFPL", "a <licence> & more"}},
	}}
}

func TestCycloneDX(t *testing.T) {
	about := About{Name: "shop", Version: "1.0.0", Created: time.Date(2026, 3, 2, 0, 0, 0, 0, time.UTC)}
	b, err := CycloneDX(inventory(), about)
	again, err2 := CycloneDX(inventory(), about)
	if err != nil || err2 != nil || !bytes.Equal(b, again) {
		t.Fatal(err, err2, "or not the same twice")
	}
	var bom cyclonedx.BOM
	if err := cyclonedx.NewBOMDecoder(bytes.NewReader(b), cyclonedx.BOMFileFormatJSON).Decode(&bom); err != nil {
		t.Fatal(err)
	}
	c := *bom.Components
	if bom.SpecVersion != cyclonedx.SpecVersion1_6 || len(c) != 2 || c[1].PackageURL != "pkg:npm/left-pad@1.3.0" || len(*c[1].Evidence.Occurrences) != 2 || len(*c[1].Licenses) != 2 {
		t.Errorf("%s", b)
	}
	if bom.Metadata.Component.Version != string(inventory().Image) || bom.Metadata.Timestamp != "2026-03-02T00:00:00Z" || (*c[0].Properties)[0].Value != string(kiln.DigestOf(nil)) {
		t.Errorf("%s", b)
	}
	other := inventory()
	other.Image = kiln.DigestOf([]byte("another"))
	b, err = CycloneDX(other, about)
	if err != nil || strings.Contains(string(b), bom.SerialNumber) {
		t.Errorf("another image has the same number: %v", err)
	}
}

func TestSPDX(t *testing.T) {
	b, err := SPDX(inventory(), About{Name: "shop"})
	again, err2 := SPDX(inventory(), About{Name: "shop"})
	if err != nil || err2 != nil || !bytes.Equal(b, again) {
		t.Fatal(err, err2, "or not the same twice")
	}
	doc, err := spdxjson.Read(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if err := spdxlib.ValidateDocument(doc); err != nil {
		t.Error(err)
	}
	if len(doc.Packages) != 3 || len(doc.Relationships) != 3 || doc.CreationInfo.Created != "1970-01-01T00:00:00Z" || doc.Packages[2].PackageExternalReferences[0].Locator != "pkg:npm/left-pad@1.3.0" {
		t.Errorf("%s", b)
	}
}
