// `uffda put INPUT URI`: stores the bytes of a file or of any source where a source can be opened later.
#pragma once

#include <functional>
#include <string>

#include "uffda/deadline.h"
#include "uffda/result.h"
#include "uffda/units.h"

namespace uffda::cli {

struct PutCommand {
  std::string input;  ///< a path, or a source's URI
  std::string uri;
  bool replace = false;
  Duration deadline = std::chrono::seconds(30);  ///< for one read of the input
};

struct PutProgress {
  ByteCount done;    ///< of the image, with what is zeroes
  ByteCount stored;  ///< of it data
  ByteCount size;
};

/// Copies, several reads and writes under way at once; zeroes are left out. Afterwards the URI opens, and has the size
/// of the input, or nothing is there that was not before. `progress` is called after each step, and ten times a second
/// while there is none, and returns whether to go on. Errors: the source's and the writer's; cancelled (progress said
/// so); io (the size differs).
Result<PutProgress> put(const PutCommand& command, const std::function<bool(const PutProgress&)>& progress);

/// The command: with a line of progress on a terminal. Returns the exit status, or why it failed.
Result<int> run_put(const PutCommand& command);

}  // namespace uffda::cli
