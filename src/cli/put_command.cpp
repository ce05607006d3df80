#include <fmt/format.h>

#include "cli/progress.h"
#include "cli/put.h"
#include "cli/table.h"

namespace uffda::cli {

Result<int> run_put(const PutCommand& command) {
  const Interruptible interruptible;  // so that what was stored is removed again
  Result<PutProgress> done;
  {
    ProgressLine line("storing");
    done = put(command, [&](const PutProgress& progress) {
      line.show(progress.done, progress.size);
      return !Interruptible::flag();
    });
  }
  if (!done && done.error().code() == Errc::cancelled && Interruptible::status() != 0) {
    fmt::print(stderr, "uffda put: {}\n", done.error().message());
    return Interruptible::status();
  }
  if (!done) return std::unexpected(done.error());
  fmt::print("{}: {} stored, {} of them data\n", command.uri, size_text(done->size), size_text(done->stored));
  return 0;
}

}  // namespace uffda::cli
