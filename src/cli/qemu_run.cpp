// What qemu save and qemu restore do.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cli/progress.h"
#include "cli/qemu_commands.h"
#include "cli/table.h"
#include "server/report.h"

namespace uffda::cli {
namespace {

/// An error of work that a signal cut short: the status says so.
template <typename T>
Result<int> ended(const Result<T>& result, std::string_view command) {
  if (result) return 0;
  if (result.error().code() != Errc::cancelled || Interruptible::status() == 0) return std::unexpected(result.error());
  fmt::print(stderr, "uffda qemu {}: {}\n", command, result.error().message());
  return Interruptible::status();
}

std::string report_of(const qemu::RestoreCounts& counts) {
  const nlohmann::ordered_json report = {{"version", 1},
                                         {"resumed", counts.resumed},
                                         {"asked_pages", counts.asked},
                                         {"asked_bytes", counts.asked_bytes.value},
                                         {"pushed_pages", counts.pushed},
                                         {"zero_pages", counts.zeroes},
                                         {"earlier_pages", counts.before},
                                         {"fetches", counts.fetches},
                                         {"fetched_bytes", counts.fetched.value},
                                         {"to_run_ms", counts.to_run.count()},
                                         {"total_ms", counts.total.count()}};
  return report.dump(2) + "\n";
}

}  // namespace

Result<int> run_qemu_save(QemuSaveCommand command) {
  const Interruptible interruptible;
  Result<qemu::SaveResult> saved = fail(Errc::cancelled);
  {
    ProgressLine line("packing");
    command.options.progress = [&](ByteCount done, ByteCount size) { line.show(done, size); };
    command.options.cancel = &Interruptible::flag();
    saved = qemu::save(command.options);
  }
  if (saved) {
    fmt::print("{}: a machine with {} of RAM, {} of it not zero, and {} of state, in {}; it stood still for {} ms\n",
               command.options.output, size_text(saved->ram), size_text(saved->data), size_text(saved->devices),
               size_text(saved->pack), saved->downtime.count());
  }
  return ended(saved, "save");
}

Result<int> run_qemu_restore(QemuRestoreCommand command) {
  const Interruptible interruptible;
  command.options.cancel = &Interruptible::flag();
  const auto counts = qemu::restore(command.options);
  if (!counts) return ended(counts, "restore");
  fmt::print(
      "{} after {} ms; complete after {} ms: {} pages asked for, {} sent unasked ({} of them zero){}; fetched {} in "
      "{} reads\n",
      counts->resumed ? "goes on" : "runs", counts->to_run.count(), counts->total.count(), counts->asked,
      counts->pushed, counts->zeroes, counts->before != 0 ? fmt::format(", {} there before", counts->before) : "",
      size_text(counts->fetched), counts->fetches);
  if (!command.report.empty()) UFFDA_TRY_VOID(write_report(command.report, report_of(*counts)));
  return 0;
}

}  // namespace uffda::cli
