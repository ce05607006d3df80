#include "qemu/save.h"

#include <fmt/format.h>
#include <poll.h>

#include <algorithm>
#include <charconv>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>

#include "base/log.h"
#include "os/socket.h"
#include "qemu/channel.h"
#include "qemu/ram_file.h"
#include "server/packet.h"
#include "sources/pack/writer.h"

namespace uffda::qemu {
namespace {

constexpr std::uint64_t kNoLimit = std::uint64_t{1} << 40U;  // bytes a second: QEMU's own default would be 128 MiB
constexpr std::uint64_t kMostRounds = 3;                     // over RAM, before the machine is stopped
constexpr Duration kLook = std::chrono::milliseconds(100);   // between two looks at the migration
constexpr Duration kSettle = std::chrono::seconds(10);       // from the last byte to QEMU's own word

/// The monitor's words for the page size of each block: `pc.ram    4 KiB  0x0000...`.
std::map<std::string, ByteCount> page_sizes(const std::string& table) {
  std::map<std::string, ByteCount> sizes;
  std::istringstream lines(table);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string name;
    std::uint64_t number = 0;
    std::string unit;
    if (!(words >> name >> number >> unit)) continue;
    const unsigned shift = unit == "KiB" ? 10U : unit == "MiB" ? 20U : unit == "GiB" ? 30U : 0U;
    if (shift != 0) sizes[name] = {number << shift};
  }
  return sizes;
}

/// A machine while it is saved: what was changed of it is put back when this goes.
class Saving {
 public:
  Saving(Qmp& qmp, const SaveOptions& options) : qmp_(qmp), options_(options) {}
  Saving(const Saving&) = delete;
  Saving& operator=(const Saving&) = delete;
  ~Saving() {
    if (started_ && !completed_) (void)qmp_.execute("migrate_cancel");
    if (bandwidth_) (void)qmp_.execute("migrate-set-parameters", {{"max-bandwidth", *bandwidth_}});
    const bool goes_on = !completed_ || options_.afterwards == Afterwards::go_on;
    if (!was_running_ || !goes_on) return;
    if (const auto done = qmp_.execute("cont"); !done)
      log(LogLevel::error, "the machine stays stopped: {}", done.error().message());
  }

  Result<void> begin() {
    UFFDA_TRY_VOID(check_capabilities(qmp_, {}));
    const auto status = UFFDA_TRY(qmp_.execute("query-status"));
    if (text_of(status, "status") == "inmigrate")
      return fail(Errc::invalid_argument, "this QEMU waits for a machine to be restored: there is none to save");
    was_running_ = status.value("running", false);
    const auto parameters = UFFDA_TRY(qmp_.execute("query-migrate-parameters"));
    const auto table = UFFDA_TRY(qmp_.execute("human-monitor-command", {{"command-line", "info ramblock"}}));
    if (table.is_string()) sizes_ = page_sizes(table.get<std::string>());
    UFFDA_TRY(qmp_.execute("migrate-set-parameters", {{"max-bandwidth", kNoLimit}}));
    bandwidth_ = number_of(parameters, "max-bandwidth");
    // A machine that was saved before and stayed stopped would refuse to be so again.
    stream_ = UFFDA_TRY(open_stream(qmp_, "migrate"));
    started_ = true;
    return {};
  }

  /// Until QEMU has sent everything.
  Result<void> receive(StreamParser& parser) {
    const Deadline deadline = Deadline::after(options_.deadline);
    std::vector<std::byte> buffer(1U << 20U);
    TimePoint look = Clock::now() + kLook;
    for (;;) {
      if (options_.cancel != nullptr && *options_.cancel) return fail(Errc::cancelled, "interrupted");
      if (deadline.passed()) return fail(Errc::timed_out, "the machine is not saved in time");
      if (Clock::now() >= look) {
        UFFDA_TRY_VOID(watch());
        look = Clock::now() + kLook;
      }
      const auto received = os::receive_some(stream_.get(), buffer);
      if (received) {
        UFFDA_TRY_VOID(parser.push(*received));
      } else if (received.error().code() == Errc::again) {
        (void)handoff::wait_socket(stream_.get(), POLLIN, Deadline::at(look));
      } else if (received.error().code() == Errc::gone) {
        return settle();
      } else {
        return std::unexpected(received.error());
      }
    }
  }

  [[nodiscard]] std::chrono::milliseconds downtime() const { return downtime_; }

  /// Page sizes that QEMU said nothing of would be guesses.
  Result<void> name_page_sizes(std::vector<PlacedBlock>& blocks) const {
    for (PlacedBlock& placed : blocks) {
      const auto size = sizes_.find(placed.block.name);
      if (size == sizes_.end()) {
        return fail(Errc::unsupported, fmt::format("QEMU does not say what pages the block '{}' has (info ramblock)",
                                                   placed.block.name));
      }
      placed.block.page_size = size->second;
      const bool fits = placed.block.length.value % size->second.value == 0 && size->second >= kTargetPage;
      if (!fits) return fail(Errc::unsupported, fmt::format("the pages of block '{}'", placed.block.name));
    }
    return {};
  }

 private:
  /// A guest that writes faster than its pages are sent is stopped after some rounds.
  Result<void> watch() {
    const auto answer = UFFDA_TRY(qmp_.execute("query-migrate"));
    if (text_of(answer, "status") == "failed")
      return fail(Errc::io, fmt::format("QEMU cannot send the machine: {}", text_of(answer, "error-desc")));
    const auto ram = answer.find("ram");
    const std::uint64_t rounds = ram != answer.end() ? number_of(*ram, "dirty-sync-count") : 0;
    if (rounds <= kMostRounds || stopped_ || !was_running_) return {};
    stopped_ = true;
    UFFDA_TRY(qmp_.execute("stop"));
    return {};
  }

  Result<void> settle() {
    const Deadline deadline = Deadline::after(kSettle);
    for (;;) {
      const auto answer = UFFDA_TRY(qmp_.execute("query-migrate"));
      const std::string status = text_of(answer, "status");
      if (status == "completed") {
        downtime_ = std::chrono::milliseconds(number_of(answer, "downtime"));
        completed_ = true;
        return {};
      }
      const bool over = status == "failed" || status == "cancelled" || deadline.passed();
      if (over) {
        return fail(Errc::io,
                    fmt::format("QEMU cannot send the machine ({}): {}", status, text_of(answer, "error-desc")));
      }
      (void)::poll(nullptr, 0, 5);
    }
  }

  Qmp& qmp_;
  const SaveOptions& options_;
  os::UniqueFd stream_;
  std::map<std::string, ByteCount> sizes_;
  std::optional<std::uint64_t> bandwidth_;
  std::chrono::milliseconds downtime_{};
  bool was_running_ = false;
  bool stopped_ = false;
  bool started_ = false;
  bool completed_ = false;
};

std::string directory_of(const std::string& path) {
  const auto slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

/// The machine's part: it is running again when this returns.
Result<MachineState> take(const SaveOptions& options, RamFile& file, SaveResult& result) {
  Qmp qmp = UFFDA_TRY(Qmp::connect(options.qmp));
  Saving saving(qmp, options);
  UFFDA_TRY_VOID(saving.begin());
  StreamParser parser(file);
  UFFDA_TRY_VOID(saving.receive(parser));
  UFFDA_TRY_VOID(saving.name_page_sizes(file.placed()));
  result.downtime = saving.downtime();
  return parser.finish();
}

}  // namespace

Result<SaveResult> save(const SaveOptions& options) {
  SaveResult result;
  RamFile file = UFFDA_TRY(RamFile::create(directory_of(options.output)));
  const MachineState state = UFFDA_TRY(take(options, file, result));
  UFFDA_TRY_VOID(file.finish(state));
  for (const PlacedBlock& placed : file.placed()) result.ram += placed.block.length;
  result.data = file.data();
  result.devices = {state.devices.size()};

  const auto source = UFFDA_TRY(file.open());
  pack::WriterOptions writing{.level = options.level, .metadata = {{"content", "qemu-machine"}}, .base_name = {}};
  if (!state.machine.empty()) writing.metadata["machine"] = state.machine;
  writing.cancel = options.cancel;
  if (options.progress)
    writing.progress = [&](const pack::WriterProgress& at) { options.progress(at.done, at.size); };
  const pack::Summary summary = UFFDA_TRY(pack::write_pack(*source, options.output, writing));
  result.pack = summary.file_size;
  return result;
}

}  // namespace uffda::qemu
