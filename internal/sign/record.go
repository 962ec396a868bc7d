package sign

import (
	"context"
	"fmt"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"

	"github.com/kilnproject/kiln"
)

// recordType comes before the kind in the type of a record's payload. With that
// type in what is signed (DSSE's pre-authentication encoding) no record can be
// taken for another kind, and none for a statement about an image.
const recordType = "application/vnd.kiln.record.v1."

// SignRecord signs a record of this machine. The same record has the same
// signature, ASN.1 DER.
func (s *Signer) SignRecord(kind string, payload []byte) ([]byte, error) {
	signature, err := s.records.current().sign(dsse.PAE(recordType+kind, payload))
	if err != nil {
		return nil, fmt.Errorf("sign record %s: %w", kind, err)
	}
	return signature, nil
}

// CheckRecord checks the signature of a record. The error is a refusal.
func (s *Signer) CheckRecord(kind string, payload, signature []byte) error {
	if _, ok := s.records.current().signer(dsse.PAE(recordType+kind, payload), signature); ok {
		return nil
	}
	return kiln.Errorf(kiln.CodeRefused, "it is made again from what it was made of", "the record %s is not signed by this machine: %w", kind, ErrChanged)
}

// Records signs and checks the records of one kind, for a package that knows no
// other.
type Records struct {
	signer *Signer
	kind   string
}

// Records returns what signs the records of a kind.
func (s *Signer) Records(kind string) Records { return Records{s, kind} }

// Sign is SignRecord.
func (r Records) Sign(_ context.Context, payload []byte) ([]byte, error) {
	return r.signer.SignRecord(r.kind, payload)
}

// Check is CheckRecord.
func (r Records) Check(_ context.Context, payload, signature []byte) error {
	return r.signer.CheckRecord(r.kind, payload, signature)
}
