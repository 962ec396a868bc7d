// Package gateway is the data plane: a process without privileges that carries
// all traffic of one machine by one table, kiln.Traffic. It serves HTTP/1.1,
// HTTP/2 and TCP on sockets that it was given, answers the environments' names,
// and counts what it carries. The control plane and the keeper may be away: the
// last table is on disk, and is served from the start.
//
// A table is compiled once and swapped as a whole; requests never wait for it.
// HTTP/1.1 between client and instance runs in one goroutine per client
// connection, on buffers that are used again; HTTP/2 on either side goes
// through net/http's types.
//
// # Choice
//
// The weights of a route are dealt out exactly, in 100 turns as evenly spread
// as can be. Of the fleet whose turn it is, the instance with the fewest
// requests in flight is taken. One that refused or dropped a request is left
// out until the next table, or for five seconds when none comes, and reported
// to the control plane; when all of a fleet are suspect, all are tried.
//
// # Retries
//
// An attempt of which nothing was sent goes to another instance, whatever the
// method. GET, HEAD and OPTIONS without a body go to another instance once
// more while no byte of an answer was forwarded, and are not counted against
// an instance that had closed an idle connection. Other methods get only idle
// connections that were used a moment ago.
//
// # What is refused
//
// What two servers could understand in two ways is answered with 400 and never
// forwarded: see package http1. A path is matched and forwarded in one normal
// form; dot segments are refused. Clients' X-Forwarded-*, Forwarded and
// X-Real-IP are replaced on public listeners; instances' own calls keep theirs.
//
// # The private side
//
// A call to a service's virtual address stays within the caller's release, and
// goes to the newest release when the caller's has no fleets for the service;
// addresses that are no instance's of the environment are refused. The
// resolver answers an environment's names to its instances only, and never
// asks another server.
//
// # Certificates
//
// Those from files come with the table, because the files are root's. Those of
// the local authority and of ACME are made and kept here.
//
// The package starts no instances, opens no listening sockets, and trusts
// nothing that a client or an instance says.
package gateway
