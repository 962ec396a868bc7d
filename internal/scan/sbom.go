package scan

import (
	"bytes"
	"cmp"
	"fmt"
	"time"

	"github.com/CycloneDX/cyclonedx-go"
	"github.com/google/uuid"
	"github.com/package-url/packageurl-go"
	spdxjson "github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx/v2/common"
	spdx "github.com/spdx/tools-golang/spdx/v2/v2_3"

	"github.com/kilnproject/kiln"
)

// About is what an SBOM says besides the packages. The same inventory with the
// same About gives the same bytes.
type About struct {
	Name    string    // of the image, for people
	Version string    // of Kiln
	Created time.Time // of the image, not of the document; zero leaves it out or, where it must be, is 1970
}

// namespaceOf is what document numbers derive from (RFC 9562, name-based).
const namespaceOf = "https://github.com/kilnproject/kiln/sbom/"

// serial is a UUID that follows from the image and the format.
func serial(i kiln.Inventory, format string) string {
	return uuid.NewSHA1(uuid.NameSpaceURL, []byte(namespaceOf+format+"/"+string(i.Image))).String()
}

// CycloneDX writes an inventory as CycloneDX 1.6 in JSON.
func CycloneDX(i kiln.Inventory, about About) ([]byte, error) {
	bom := cyclonedx.NewBOM()
	bom.SerialNumber = "urn:uuid:" + serial(i, "cyclonedx")
	image := cyclonedx.Component{
		BOMRef: "image", Type: cyclonedx.ComponentTypeContainer, Name: cmp.Or(about.Name, string(i.Image), "image"), Version: string(i.Image),
	}
	bom.Metadata = &cyclonedx.Metadata{Component: &image, Tools: &cyclonedx.ToolsChoice{Components: &[]cyclonedx.Component{
		{Type: cyclonedx.ComponentTypeApplication, Name: "kiln", Version: about.Version},
	}}}
	if !about.Created.IsZero() {
		bom.Metadata.Timestamp = about.Created.UTC().Format(time.RFC3339)
	}
	components := make([]cyclonedx.Component, 0, len(i.Packages))
	refs := make([]string, 0, len(i.Packages))
	for _, p := range i.Packages {
		components = append(components, component(p))
		refs = append(refs, p.PURL)
	}
	bom.Components = &components
	bom.Dependencies = &[]cyclonedx.Dependency{{Ref: "image", Dependencies: &refs}}
	var b bytes.Buffer
	err := cyclonedx.NewBOMEncoder(&b, cyclonedx.BOMFileFormatJSON).SetPretty(true).SetEscapeHTML(false).EncodeVersion(bom, cyclonedx.SpecVersion1_6)
	if err != nil {
		return nil, fmt.Errorf("write CycloneDX: %w", err)
	}
	return b.Bytes(), nil
}

func component(p kiln.Package) cyclonedx.Component {
	c := cyclonedx.Component{BOMRef: p.PURL, Type: cyclonedx.ComponentTypeLibrary, Name: p.Name, Version: p.Version, PackageURL: p.PURL}
	if len(p.Licenses) > 0 {
		choice := cyclonedx.Licenses{}
		for _, l := range p.Licenses {
			choice = append(choice, cyclonedx.LicenseChoice{License: &cyclonedx.License{Name: l}})
		}
		c.Licenses = &choice
	}
	occurrences := make([]cyclonedx.EvidenceOccurrence, 0, len(p.Locations))
	for _, l := range p.Locations {
		occurrences = append(occurrences, cyclonedx.EvidenceOccurrence{Location: l})
	}
	c.Evidence = &cyclonedx.Evidence{Occurrences: &occurrences}
	if p.Layer != "" {
		c.Properties = &[]cyclonedx.Property{{Name: "kiln:layer", Value: string(p.Layer)}}
	}
	return c
}

// SPDX writes an inventory as SPDX 2.3 in JSON.
func SPDX(i kiln.Inventory, about About) ([]byte, error) {
	const image = common.ElementID("image")
	name := cmp.Or(about.Name, string(i.Image), "image")
	created := about.Created
	if created.IsZero() {
		created = time.Unix(0, 0)
	}
	doc := &spdx.Document{
		SPDXVersion: spdx.Version, DataLicense: spdx.DataLicense, SPDXIdentifier: "DOCUMENT", DocumentName: name,
		DocumentNamespace: namespaceOf + "spdx/" + serial(i, "spdx"),
		CreationInfo: &spdx.CreationInfo{
			Created:  created.UTC().Format(time.RFC3339),
			Creators: []common.Creator{{CreatorType: "Tool", Creator: "kiln-" + cmp.Or(about.Version, "dev")}},
		},
		Packages: []*spdx.Package{{
			PackageName: name, PackageSPDXIdentifier: image, PackageVersion: string(i.Image), PackageDownloadLocation: "NOASSERTION", PrimaryPackagePurpose: "CONTAINER",
			PackageLicenseConcluded: "NOASSERTION", PackageLicenseDeclared: "NOASSERTION", PackageCopyrightText: "NOASSERTION",
		}},
	}
	relate := func(a, b common.ElementID, how string) {
		doc.Relationships = append(doc.Relationships, &spdx.Relationship{
			RefA: common.MakeDocElementID("", string(a)), RefB: common.MakeDocElementID("", string(b)), Relationship: how,
		})
	}
	relate("DOCUMENT", image, common.TypeRelationshipDescribe)
	for n, p := range i.Packages {
		id := common.ElementID(fmt.Sprintf("package-%d", n+1))
		doc.Packages = append(doc.Packages, spdxPackage(id, p))
		relate(image, id, common.TypeRelationshipContains)
	}
	var b bytes.Buffer
	if err := spdxjson.Write(doc, &b, spdxjson.Indent("  "), spdxjson.EscapeHTML(false)); err != nil {
		return nil, fmt.Errorf("write SPDX: %w", err)
	}
	return b.Bytes(), nil
}

// spdxPackage describes a package. What it says of its licence is rarely an
// expression that SPDX allows, so it is a comment.
func spdxPackage(id common.ElementID, p kiln.Package) *spdx.Package {
	one := &spdx.Package{
		PackageName: p.Name, PackageSPDXIdentifier: id, PackageVersion: p.Version, PackageDownloadLocation: "NOASSERTION",
		PackageLicenseConcluded: "NOASSERTION", PackageLicenseDeclared: "NOASSERTION", PackageCopyrightText: "NOASSERTION",
		PackageExternalReferences: []*spdx.PackageExternalReference{{Category: common.CategoryPackageManager, RefType: common.TypePackageManagerPURL, Locator: p.PURL}},
	}
	for _, l := range p.Licenses {
		one.PackageLicenseComments += "the package says: " + l + "\n"
	}
	for n, l := range p.Locations {
		if n > 0 {
			one.PackageSourceInfo += ", "
		}
		one.PackageSourceInfo += l
	}
	if u, err := packageurl.FromString(p.PURL); err == nil && u.Type == packageurl.TypeDebian && u.Namespace != "" {
		one.PackageSupplier = &common.Supplier{SupplierType: "Organization", Supplier: u.Namespace}
	}
	return one
}
