#include "server/lazy_pages.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <optional>

#include "base/log.h"
#include "criu/dump.h"
#include "criu/dump_source.h"
#include "memtypes/builtin.h"
#include "mm/core.h"
#include "monitors/mapped_fill.h"
#include "os/other_process.h"
#include "server/address_spaces.h"
#include "server/holder.h"
#include "server/lazy_pages_socket.h"
#include "server/process.h"
#include "uffda/page_source.h"

namespace uffda {
namespace {

constexpr std::uint32_t kObject = 1;  // its number, for mappings that are kept
constexpr int kLookAgainMs = 1000;

handoff::Token token_of(pid_t pid) {
  handoff::Token token{};
  const std::string text = fmt::format("criu {}", pid);
  std::ranges::copy(text, token.bytes);
  return token;
}

class LazyPages {
 public:
  static Result<std::unique_ptr<LazyPages>> create(const LazyPagesOptions& options, criu::Layout layout, Held& held);

  Result<int> run(EndSignals& signals);

 private:
  LazyPages(criu::Layout layout, Held& held, Listener listener, os::UniqueFd changed)
      : layout_(std::move(layout)),
        kept_(held.state()),
        changed_(std::move(changed)),
        socket_(std::move(listener), held.state()->handshake()) {}

  void notify() {
    const std::uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = ::write(changed_.get(), &one, sizeof one);  // full is as good as written
  }
  Result<void> take_task(const LazyTask& task);
  Result<void> attach_memory(AddressSpace& space, const criu::Task* task);
  void begin_fill();
  void end_early();
  void give_up_the_rest();
  bool wait(EndSignals& signals);
  int conclude();

  const criu::Layout layout_;
  const std::shared_ptr<KeptState> kept_;
  const os::UniqueFd changed_;
  LazyPagesSocket socket_;
  std::shared_ptr<Core> core_;
  std::shared_ptr<MemoryObject> object_;
  std::shared_ptr<AddressSpaces> spaces_;
  std::optional<BackgroundFill> fill_;
  const TimePoint started_ = Clock::now();
  bool failed_ = false;
  unsigned signals_ = 0;
};

Result<std::unique_ptr<LazyPages>> LazyPages::create(const LazyPagesOptions& options, criu::Layout layout, Held& held) {
  os::UniqueFd changed(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!changed) return fail_errno(errno, "eventfd");
  auto core = UFFDA_TRY(Core::create({.warn_after = options.warn_after, .deadline = options.deadline}));
  UFFDA_TRY_VOID(register_builtin_types(core->types()));
  auto source = UFFDA_TRY(open_source(options.pages.empty() ? criu::source_uri(options.images) : options.pages));
  if (source->properties().size != layout.size()) {
    return fail(Errc::invalid_argument,
                fmt::format("{} has {} bytes, and the tasks of {} have {}: it is not the memory of this dump",
                            source->name(), source->properties().size.value, options.images, layout.size().value));
  }
  const std::string path = (options.work.empty() ? options.images : options.work) + "/lazy-pages.socket";
  Listener listener =
      UFFDA_TRY(held.listen(Protocol::criu, path, {}, [&path] { return Listener::create(Protocol::criu, path, {}); }));
  std::unique_ptr<LazyPages> server(new LazyPages(std::move(layout), held, std::move(listener), std::move(changed)));
  server->core_ = std::move(core);
  server->object_ = UFFDA_TRY(
      server->core_->create_object(std::move(source), "anon", {}, OpenFor::reading, {.number = kObject, .kept = {}}));
  server->spaces_ =
      AddressSpaces::create(server->core_, KeptState::kMaxSpaces,
                            {.on_change = [raw = server.get()] { raw->notify(); }, .on_lost = nullptr}, held.state());
  if (held.is_restarted()) {
    server->spaces_->adopt(
        [object = server->object_](std::uint32_t number) { return number == kObject ? object : nullptr; });
  }
  return server;
}

Result<void> LazyPages::attach_memory(AddressSpace& space, const criu::Task* task) {
  if (task == nullptr) return {};
  for (const criu::Vma& vma : task->vmas)
    UFFDA_TRY_VOID(space.attach(vma.range.start, vma.range.length, object_, vma.offset, Sharing::copied));
  return {};
}

Result<void> LazyPages::take_task(const LazyTask& task) {
  const handoff::Token token = token_of(task.pid);
  if (spaces_->find(token)) return {};  // the server before has seen to it
  const criu::Task* const known = layout_.find(task.pid);
  if (known == nullptr) {
    failed_ = true;
    log(LogLevel::error, "task {} is not in the images: SIGBUS when it touches what it has not got", task.pid);
  }
  const std::uint64_t features = UFFDA_TRY(os::userfault_info(task.userfault)).features;
  UFFDA_TRY(spaces_->attach(
      {.userfaultfd = os::UniqueFd(task.userfault), .features = features, .wanted = token, .process = {}},
      [&](AddressSpace& space) { return attach_memory(space, known); }));
  return {};
}

void LazyPages::begin_fill() {
  if (fill_) return;
  fill_ = fill_address_spaces(object_, [spaces = spaces_] { return spaces->all(); },
                              {.tell = [this](const FillProgress& progress) {
                                if (progress.end != FillEnd::running) notify();
                              }});
}

void LazyPages::give_up_the_rest() {
  if (fill_) fill_->stop();
  failed_ = true;
  log(LogLevel::error, "ended by a second signal: SIGBUS for who touches what is not there yet");
  for (const auto& space : spaces_->all()) {
    for (const FolioRange range : space->shown(*object_)) {
      // An address space that is changing is so for a moment, for its loop reads what it says.
      const Deadline deadline = Deadline::after(core_->options().deadline);
      while (space->supply(*object_, range, FolioNews::poisoned, {}) == AddressSpace::Supplied::later &&
             !deadline.passed())
        (void)::poll(nullptr, 0, 1);
    }
  }
}

void LazyPages::end_early() {
  if (++signals_ > 1) return give_up_the_rest();
  if (spaces_->count() != 0) log(LogLevel::warning, "ending: what the tasks have not got yet is fetched first");
  begin_fill();
}

bool LazyPages::wait(EndSignals& signals) {
  std::array<pollfd, 3> entries{pollfd{.fd = changed_.get(), .events = POLLIN, .revents = 0},
                                pollfd{.fd = signals.fd(), .events = POLLIN, .revents = 0},
                                pollfd{.fd = socket_.fd(), .events = POLLIN, .revents = 0}};
  (void)::poll(entries.data(), entries.size(), kLookAgainMs);
  std::uint64_t count = 0;
  [[maybe_unused]] const ssize_t size = ::read(changed_.get(), &count, sizeof count);
  if (entries[1].revents != 0 && signals.take()) end_early();
  return entries[2].revents != 0;
}

Result<int> LazyPages::run(EndSignals& signals) {
  for (;;) {
    while (const std::optional<LazyTask> task = UFFDA_TRY(socket_.next())) {
      if (const auto taken = take_task(*task); !taken) {
        failed_ = true;
        log(LogLevel::error, "task {}: {}", task->pid, taken.error().message());
      }
      socket_.taken();
    }
    if (socket_.finished()) begin_fill();
    failed_ = failed_ || socket_.cut_short();
    if (fill_ && fill_->progress().end != FillEnd::running) return conclude();
    if (fill_ && spaces_->count() == 0) return conclude();
    (void)wait(signals);
  }
}

int LazyPages::conclude() {
  const FillProgress progress = fill_->progress();
  const Stats& stats = core_->stats();
  const std::size_t tasks = spaces_->count();
  failed_ = failed_ || progress.left.value != 0 || (progress.end != FillEnd::complete && tasks != 0);
  fill_.reset();
  spaces_->stop();
  const auto mib = [](std::uint64_t bytes) { return static_cast<double>(bytes) / (1 << 20); };
  fmt::print(stderr, "uffda: criu: {} task{}: {:.1f} MiB fetched, {} faults, {:.1f} MiB could not be had; {:.3f} s{}\n",
             tasks, tasks == 1 ? "" : "s", mib(stats.bytes_fetched), stats.faults_missing.load(),
             mib(progress.left.value), std::chrono::duration<double>(Clock::now() - started_).count(),
             socket_.cut_short() ? "; the restore ended before it was complete" : "");
  return failed_ ? 1 : 0;
}

void announce(int ready_fd) {
  if (ready_fd < 0) return;
  const os::UniqueFd ready(ready_fd);
  [[maybe_unused]] const ssize_t written = ::write(ready.get(), "ready\n", 6);  // who does not listen does not care
}

}  // namespace

Result<int> run_lazy_pages(const LazyPagesOptions& options) {
  raise_descriptor_limit();
  criu::Layout layout = UFFDA_TRY(criu::Layout::read(options.images));
  if (layout.tasks().size() > KeptState::kMaxSpaces) {
    return fail(Errc::no_memory, fmt::format("{} has {} tasks, and {} can be kept: restore it without --lazy-pages",
                                             options.images, layout.tasks().size(), KeptState::kMaxSpaces));
  }
  ServeOptions holding{.ready_fd = options.ready_fd};
  const HeldOrEnded begun = UFFDA_TRY(hold(holding));
  if (begun.held == nullptr) return begun.status;
  EndSignals signals = UFFDA_TRY(EndSignals::create());
  auto server = LazyPages::create(options, std::move(layout), *begun.held);
  if (!server && begun.held->is_restarted()) {
    // Nothing more: what is closed here would be closed for the next server, too.
    log(LogLevel::error, "the server does not start: {}", server.error().message());
    ::_exit(1);
  }
  if (!server) return std::unexpected(server.error());
  begun.held->state()->note_serving();
  if (!begun.held->is_restarted()) announce(options.ready_fd);
  return (*server)->run(signals);
}

}  // namespace uffda
