// Package kiln holds the vocabulary of Kiln: what a definition says, what is
// baked from it, what is released, what runs, and the contracts that two or
// more packages implement. It imports the standard library only and does
// nothing itself: no files, no network, no clock.
//
// docs/GLOSSARY.md explains each word; docs/ARCHITECTURE.md says which package
// may know which.
package kiln
