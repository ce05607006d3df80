// The page source over a chain of packs.
//
//   1. fetch, in the calling thread: frames of zeroes are filled at once; the rest is cut into parts, frames that lie
//      side by side in one file; each part gets a buffer and is one read of that file's source. No waiting;
//   2. a part whose bytes have come is queued to the workers;
//   3. a worker unpacks frame by frame, straight into the ticket's buffer where the ticket wants the whole frame,
//      checks the checksum of each, and answers the ticket with its last part.
//
// Buffers are bounded: a fetch that finds none waits, and is taken up by the worker that frees one.
#pragma once

#include <memory>

#include "sources/pack/chain.h"
#include "uffda/page_source.h"

namespace uffda::pack {

/// Errors: no_memory.
Result<std::unique_ptr<PageSource>> make_pack_source(Chain chain, std::string name);

}  // namespace uffda::pack
