#include "qemu/save.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <charconv>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/log.h"
#include "base/mutex.h"
#include "base/thread.h"
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
constexpr Duration kSilence = std::chrono::seconds(1);       // on the stream, before it is looked at again
constexpr Duration kSettle = std::chrono::seconds(10);       // from the last byte to QEMU's own word

/// Parses what comes on a stream, until its end; who waits for that says for how long.
class Reader {
 public:
  Reader(int stream, StreamParser& parser) : stream_(stream), thread_([this, &parser] { read(parser); }) {}
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;
  ~Reader() {
    ::shutdown(stream_, SHUT_RDWR);
    thread_.join();
  }

  /// Whether the end has come, for so long.
  bool wait(Duration duration) UFFDA_EXCLUDES(mutex_) {
    const Deadline deadline = Deadline::after(duration);
    const MutexLock lock(mutex_);
    while (!result_ && !deadline.passed()) ended_.wait_until(mutex_, deadline.when());
    return result_.has_value();
  }
  /// Requires: wait() was true.
  Result<void> result() UFFDA_EXCLUDES(mutex_) {
    const MutexLock lock(mutex_);
    return *result_;
  }

 private:
  void read(StreamParser& parser) UFFDA_EXCLUDES(mutex_) {
    Result<void> result = read_all(parser);
    const MutexLock lock(mutex_);
    result_ = std::move(result);
    ended_.notify_all();
  }

  Result<void> read_all(StreamParser& parser) const {
    std::vector<std::byte> buffer(std::size_t{1} << 20U);
    for (;;) {
      const auto received = os::receive_some(stream_, buffer);
      if (received) {
        UFFDA_TRY_VOID(parser.push(*received));
      } else if (received.error().code() == Errc::again) {
        [[maybe_unused]] const auto waited = handoff::wait_socket(stream_, POLLIN, Deadline::after(kSilence));
      } else {
        return received.error().code() == Errc::gone ? Result<void>{} : std::unexpected(received.error());
      }
    }
  }

  int stream_;
  Mutex mutex_;
  CondVar ended_;
  std::optional<Result<void>> result_ UFFDA_GUARDED_BY(mutex_);
  Thread thread_;
};

/// A machine while it is saved: what was changed of it is put back when this goes.
class Saving {
 public:
  Saving(Qmp& qmp, const SaveOptions& options) : qmp_(qmp), options_(options) {}
  Saving(const Saving&) = delete;
  Saving& operator=(const Saving&) = delete;
  ~Saving() {
    stream_.reset();  // or QEMU might wait for it to be read, and answer nothing
    if (started_ && !completed_) try_to("migrate_cancel");
    if (bandwidth_) try_to("migrate-set-parameters", {{"max-bandwidth", *bandwidth_}});
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
    was_running_ = truth_of(status, "running");
    const auto parameters = UFFDA_TRY(qmp_.execute("query-migrate-parameters"));
    const auto table = UFFDA_TRY(qmp_.execute("human-monitor-command", {{"command-line", "info ramblock"}}));
    if (table.is_string()) sizes_ = parse_page_sizes(table.get<std::string>());
    UFFDA_TRY(qmp_.execute("migrate-set-parameters", {{"max-bandwidth", kNoLimit}}));
    bandwidth_ = number_of(parameters, "max-bandwidth");
    stream_ = UFFDA_TRY(open_stream(qmp_, "migrate"));
    started_ = true;
    return {};
  }

  /// Until QEMU has sent everything. The stream is read by a thread of its own: QEMU sends the end of it holding the
  /// lock that its monitor needs, and would answer nothing until it is read.
  Result<void> receive(StreamParser& parser) {
    Reader reader(stream_.get(), parser);
    const Deadline deadline = Deadline::after(options_.deadline);
    while (!reader.wait(kLook)) {
      if (options_.cancel != nullptr && *options_.cancel) return fail(Errc::cancelled, "interrupted");
      if (deadline.passed()) return fail(Errc::timed_out, "the machine is not saved in time");
      UFFDA_TRY_VOID(watch());
    }
    UFFDA_TRY_VOID(reader.result());
    return settle();
  }

  [[nodiscard]] std::chrono::milliseconds downtime() const { return downtime_; }

  /// Page sizes that QEMU said nothing of would be guesses.
  Result<void> name_page_sizes(std::vector<PlacedBlock>& blocks) const {
    for (PlacedBlock& placed : blocks) {
      const auto size = sizes_.find(placed.block.name);
      if (size == sizes_.end()) {
        return fail(Errc::unsupported,
                    fmt::format("QEMU does not say what pages the block '{}' has (info ramblock)", placed.block.name));
      }
      placed.block.page_size = size->second;
      if (placed.block.length.value % size->second.value != 0)
        return fail(Errc::unsupported, fmt::format("the pages of block '{}'", placed.block.name));
    }
    return {};
  }

 private:
  void try_to(const std::string& command, const nlohmann::json& arguments = nlohmann::json::object()) {
    if (const auto done = qmp_.execute(command, arguments); !done)
      log(LogLevel::warning, "{}: {}", command, done.error().message());
  }

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
  Qmp qmp = UFFDA_TRY(Qmp::connect(options.qmp, Qmp::OutOfBand::no, Cancel(options.cancel)));
  qmp.heed({});  // from here on what was changed of the machine has to be put back
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
  if (options.progress) writing.progress = [&](const pack::WriterProgress& at) { options.progress(at.done, at.size); };
  const pack::Summary summary = UFFDA_TRY(pack::write_pack(*source, options.output, writing));
  result.pack = summary.file_size;
  return result;
}

}  // namespace uffda::qemu
