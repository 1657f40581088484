// Package isolate runs a source in a child process of the same binary, so that
// a peer that crashes the protocol's library costs a restart of that child and
// no data:
//
//	pipeline <─emit─ Source ══ socket pair, fd 3 ══ Serve <─emit─ protocol's source ── peer
//	    └────done─────> │ holds what is not settled          (limits: address space, heap, no core)
//
// New is the parent's half and a sources.Source like any other; Serve is the
// child's half. The configuration and its secrets are the first frame on the
// socket: they are never in argv, in the environment or on disk. The child
// lives on from one Run to the next, so that a lost connection is taken up by
// the same process; when it dies, the batches that it emitted stay with the
// parent until the pipeline settles them, and the next child starts from the
// resume point that is committed then. A batch that the pipeline gives back is
// emitted again by the parent: the child never learns of it. What the records of a
// point have in common crosses once.
package isolate
