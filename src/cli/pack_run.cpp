// What pack, unpack and verify do.
#include <fmt/format.h>
#include <sys/stat.h>

#include <cstdio>

#include "cli/pack_commands.h"
#include "cli/progress.h"
#include "cli/table.h"
#include "monitors/working_set.h"
#include "sources/pack/open.h"
#include "sources/pack/tools.h"
#include "sources/pack/writer.h"

namespace uffda::cli {
namespace {

std::string file_name(const std::string& path) {
  const std::string end = path.substr(0, path.find('?'));
  const std::size_t slash = end.find_last_of("/:");
  return slash == std::string::npos ? end : end.substr(slash + 1);
}

bool same_file(const std::string& a, const std::string& b) {
  struct stat one{};
  struct stat other{};
  return ::stat(a.c_str(), &one) == 0 && ::stat(b.c_str(), &other) == 0 && one.st_dev == other.st_dev &&
         one.st_ino == other.st_ino;
}

/// What is replaced must not be what is read.
Result<void> check_output(const std::string& output, const std::string& from) {
  if (!same_file(output, from) && (!from.starts_with("file:") || !same_file(output, from.substr(5))) &&
      (!from.starts_with("pack:") || !same_file(output, from.substr(5)))) {
    return {};
  }
  return fail(Errc::invalid_argument, output + ": is what is read; write to another file");
}

/// An error of work that a signal cut short is no error: the status says so.
template <typename T>
Result<int> finished(const Result<T>& result, int status) {
  if (result) return status;
  if (result.error().code() == Errc::cancelled && Interruptible::status() != 0) return Interruptible::status();
  return std::unexpected(result.error());
}

std::string summary_line(const std::string& output, const pack::Summary& summary) {
  const auto share = [&](pack::FrameKind kind) {
    return 100.0 * static_cast<double>(summary.of(kind).contents.value) / static_cast<double>(summary.size.value);
  };
  std::string text =
      fmt::format("{}: {} in {} ({:.1f} %)", output, size_text(summary.size), size_text(summary.file_size),
                  100.0 * static_cast<double>(summary.file_size.value) / static_cast<double>(summary.size.value));
  text += fmt::format("; zeroes {:.0f} %, duplicates {:.0f} %", share(pack::FrameKind::zero),
                      share(pack::FrameKind::duplicate));
  if (summary.of(pack::FrameKind::base).frames != 0)
    text += fmt::format(", in the base {:.0f} %", share(pack::FrameKind::base));
  return text + "\n";
}

/// What a pack keeps of a recording: that of its own contents.
Result<std::vector<std::byte>> recording_of(const std::string& file, ByteCount size) {
  std::vector<WorkingSet> sets = UFFDA_TRY(read_working_sets(file));
  std::erase_if(sets, [&](const WorkingSet& set) { return set.size != size; });
  if (sets.size() == 1) return working_set_bytes(sets);
  return fail(Errc::invalid_argument, fmt::format("{}: has {} working sets of {} bytes, and one is needed", file,
                                                  sets.empty() ? "no" : "several", size.value));
}

}  // namespace

Result<int> run_pack(const PackCommand& command) {
  UFFDA_TRY_VOID(check_output(command.output, command.input));
  std::optional<pack::Chain> base;
  pack::WriterOptions options{.level = command.level, .metadata = {}, .base_name = {}, .progress = {}};
  if (!command.base.empty()) {
    UFFDA_TRY_VOID(check_output(command.output, command.base));
    base.emplace(UFFDA_TRY(pack::open_chain(command.base)));
    options.base = &*base;
    options.base_name = file_name(command.base);
    options.frame_size = base->index().frame_size();
  }
  if (command.frame) options.frame_size = *command.frame;
  for (const auto& [key, value] : command.metadata) options.metadata[key] = value;
  const auto input = UFFDA_TRY(open_source(pack::source_uri(command.input)));
  if (!command.working_set.empty())
    options.working_set = UFFDA_TRY(recording_of(command.working_set, input->properties().size));

  const Interruptible interruptible;
  Result<pack::Summary> summary = fail(Errc::cancelled);
  {
    ProgressLine line("packing");
    options.progress = [&](const pack::WriterProgress& progress) { line.show(progress.done, progress.size); };
    options.cancel = &Interruptible::flag();
    summary = pack::write_pack(*input, command.output, options);
  }
  if (summary) fmt::print("{}", summary_line(command.output, *summary));
  return finished(summary, 0);
}

Result<int> run_attach(const AttachCommand& command) {
  const pack::Pack pack = UFFDA_TRY(pack::open_top(command.pack));
  const auto bytes = UFFDA_TRY(recording_of(command.working_set, pack.index.size()));
  UFFDA_TRY_VOID(pack::replace_working_set(command.pack, bytes));
  fmt::print("{}: keeps the working set, {}\n", command.pack, size_text({bytes.size()}));
  return 0;
}

Result<int> run_unpack(const UnpackCommand& command) {
  UFFDA_TRY_VOID(check_output(command.output, command.pack));
  const pack::Chain chain = UFFDA_TRY(pack::open_chain(command.pack));
  const Interruptible interruptible;
  ProgressLine line("unpacking");
  const auto progress = [&](ByteCount done, ByteCount size) { line.show(done, size); };
  return finished(pack::unpack(chain, command.output, {.progress = progress, .cancel = &Interruptible::flag()}), 0);
}

Result<int> run_verify(const VerifyCommand& command) {
  const pack::Chain chain = UFFDA_TRY(pack::open_chain(command.pack));
  const Interruptible interruptible;
  Result<std::vector<Error>> damages = fail(Errc::cancelled);
  {
    ProgressLine line("verifying");
    const auto progress = [&](ByteCount done, ByteCount size) { line.show(done, size); };
    damages = pack::verify(chain, {.progress = progress, .cancel = &Interruptible::flag()});
  }
  if (!damages) return finished(damages, 0);
  for (const Error& damage : *damages) fmt::print("{}\n", damage.context());
  const bool all = damages->size() < pack::kMaxDamages;
  if (!damages->empty()) {
    fmt::print("{}{} damaged\n", all ? "" : "at least ", damages->size());
    return 1;
  }
  const std::size_t packs = chain.packs().size();
  fmt::print("{}: {} frames, {} are right{}\n", command.pack, chain.index().frames(), size_text(chain.index().size()),
             packs > 1 ? fmt::format(" (through {} packs)", packs) : "");
  return 0;
}

}  // namespace uffda::cli
