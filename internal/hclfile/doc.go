// Package hclfile reads HCL files against a schema: it parses within bounds,
// says what is unknown, missing or repeated, and reads arguments by type. What
// is wrong comes back as diagnostics that have a place, the line as it stands,
// what was probably meant, and what to do. It knows neither what the blocks
// are about nor how expressions are evaluated, and opens no file.
package hclfile
