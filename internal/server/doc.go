// Package server is Kiln's API: HTTP under /v1 on the Unix socket of a data
// directory, and the client of it that the command line uses. Long operations
// answer with a stream of JSON lines: progress, then one result or one error.
//
// The package decides who may call (by the credentials of the connection's
// other end), bounds what a caller may send, and turns errors into answers. It
// never decides what a call does: that is the Control behind it.
//
// docs/reference/api.md describes the API for other clients.
package server
