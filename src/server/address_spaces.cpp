#include "server/address_spaces.h"

#include <fmt/format.h>
#include <sys/random.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

#include "base/log.h"
#include "os/userfault.h"

namespace uffda {
namespace {

constexpr Duration kAskEvery = std::chrono::seconds(1);
constexpr Duration kNobodyToAsk = std::chrono::hours(1);

bool operator_equal(const handoff::Token& a, const handoff::Token& b) {
  return std::memcmp(a.bytes, b.bytes, sizeof a.bytes) == 0;
}

Result<handoff::Token> random_token() {
  handoff::Token token{};
  if (::getrandom(token.bytes, sizeof token.bytes, 0) != static_cast<ssize_t>(sizeof token.bytes)) {
    return fail_errno(errno, "getrandom");
  }
  return token;
}

/// Asks the userfaultfd about a page that nobody can have mapped: the errno tells what it is.
Result<void> check_usable(os::Userfault& userfault) {
  constexpr Address kFirstPage{0x10000};
  const int error = userfault.continue_run(kFirstPage, kPageSize, os::Wake::no, os::Protect::no).error;
  if (error == ESRCH) return fail(Errc::gone, "the process of the userfaultfd has exited", error);
  if (error == EINVAL)
    return fail(Errc::invalid_argument, "the userfaultfd is not ready: UFFDIO_API comes first", error);
  if (!os::reads_never_wait(userfault.fd())) {
    return fail(Errc::invalid_argument,
                "a userfaultfd that came with a FORK event cannot be handed over: the child attaches its own");
  }
  return {};
}

}  // namespace

std::shared_ptr<AddressSpaces> AddressSpaces::create(std::shared_ptr<Core> core, std::size_t max_attached, Hooks hooks,
                                                     std::shared_ptr<KeptState> kept) {
  std::shared_ptr<AddressSpaces> spaces(
      new AddressSpaces(std::move(core), max_attached, std::move(hooks), std::move(kept)));
  spaces->reaper_ = std::thread([raw = spaces.get()] { raw->run_reaper(); });
  return spaces;
}

AddressSpaces::~AddressSpaces() { stop(); }

std::shared_ptr<AddressSpaces::Entry> AddressSpaces::new_entry(std::unique_ptr<os::Userfault> userfault,
                                                               std::string name, os::ProcessHandle process) {
  auto entry = std::make_shared<Entry>();
  entry->space = AddressSpace::create(core_, std::move(userfault), std::move(name));
  // Always, whatever features it claims: its children have the hook, too.
  entry->space->on_fork([weak = weak_from_this()](std::shared_ptr<AddressSpace> child) {
    if (const auto spaces = weak.lock()) spaces->adopt_child(std::move(child));
  });
  if (process.pid == 0) return entry;
  entry->process = std::make_shared<const os::ProcessHandle>(std::move(process));
  entry->space->on_lost([on_lost = hooks_.on_lost, known = entry->process](const MemoryObject& object, Address) {
    if (on_lost) on_lost(*known, object);
  });
  return entry;
}

void AddressSpaces::keep(AddressSpace& space, KeptSpace& place) {
  space.keep(place, [kept = kept_](int fd, std::uint64_t features) {
    KeptSpace* const child = kept->new_space(fd, features);
    if (child != nullptr) child->forked = 1;
    if (child == nullptr) log(LogLevel::error, "a client's child is not kept: {} are", KeptState::kMaxSpaces);
    return child;
  });
}

Result<handoff::Token> AddressSpaces::attach(HandoffBackend::Attach request, const Prepare& prepare) {
  const handoff::Token& wanted = request.wanted;
  if (!operator_equal(wanted, {}) && find(wanted)) return wanted;
  const handoff::Token token = operator_equal(wanted, {}) ? UFFDA_TRY(random_token()) : wanted;
  auto userfault = UFFDA_TRY(os::adopt_userfault(std::move(request.userfaultfd), request.features));
  UFFDA_TRY_VOID(check_usable(*userfault));
  // The dead are found once a second; before a living client is refused they are looked for.
  if (full()) reap();
  const int fd = userfault->fd();
  std::uint64_t number = 0;
  {
    const MutexLock lock(mutex_);
    number = ++attached_ever_;
  }
  auto entry = new_entry(std::move(userfault), fmt::format("client {}", number), std::move(request.process));
  entry->token = token;
  {
    const MutexLock lock(mutex_);
    if (stopping_) return fail(Errc::gone, "the server is ending");
    if (count_locked(false) >= max_attached_) {
      return fail(Errc::no_memory, fmt::format("{} clients are attached, which is this server's limit", max_attached_));
    }
    if (const auto started = start(*entry, fd, number, prepare); !started) {
      forget({entry});
      return std::unexpected(started.error());
    }
    entries_.push_back(std::move(entry));
  }
  changed_.notify_all();
  return token;
}

Result<void> AddressSpaces::start(Entry& entry, int fd, std::uint64_t number, const Prepare& prepare) {
  KeptSpace* place = nullptr;
  if (kept_) {
    place = kept_->new_space(fd, entry.space->userfault().features());
    if (place == nullptr) return fail(Errc::no_memory, fmt::format("{} clients are kept", KeptState::kMaxSpaces));
    std::ranges::copy(entry.token.bytes, place->token.begin());
    place->number = static_cast<std::uint32_t>(number);
    place->pid = entry.process ? entry.process->pid : 0;
    place->process = entry.process ? os::identity_of(*entry.process) : 0;
    keep(*entry.space, *place);
  }
  if (prepare) UFFDA_TRY_VOID(prepare(*entry.space));
  if (place != nullptr) place->used.store(1, std::memory_order_release);
  // The loop starts with the place taken: a client that forks at once finds its parent here.
  entry.loop = UFFDA_TRY(FaultLoop::start_polling(entry.space));
  return {};
}

void AddressSpaces::forget(const Entries& gone) {
  for (const auto& entry : gone) {
    if (KeptSpace* const place = entry->space->forget_kept()) kept_->free_space(*place);
  }
}

std::shared_ptr<AddressSpaces::Entry> AddressSpaces::adopt_one(KeptSpace& place) {
  auto userfault = os::adopt_userfault(os::UniqueFd(place.fd), place.features);
  if (!userfault) {
    log(LogLevel::error, "a client of the server before is lost: {}", userfault.error().message());
    kept_->free_space(place);
    return nullptr;
  }
  const bool forked = place.forked != 0;
  os::ProcessHandle process;
  if (place.pid != 0) process = os::open_process_again(place.pid, place.process).value_or(os::ProcessHandle{});
  auto entry =
      new_entry(std::move(*userfault),
                forked ? std::string("a client's child") : fmt::format("client {}", place.number), std::move(process));
  std::ranges::copy(place.token, entry->token.bytes);
  entry->forked = forked;
  keep(*entry->space, place);
  return entry;
}

void AddressSpaces::adopt(const AddressSpace::ObjectByNumber& object) {
  Entries all;
  for (KeptSpace& place : kept_->spaces()) {
    if (place.used.load(std::memory_order_acquire) == 0) continue;
    if (auto entry = adopt_one(place)) all.push_back(std::move(entry));
  }
  {
    const MutexLock lock(mutex_);
    for (const KeptSpace& place : kept_->spaces())
      if (place.used.load() != 0) attached_ever_ = std::max<std::uint64_t>(attached_ever_, place.number);
    entries_.insert(entries_.end(), all.begin(), all.end());
  }
  for (const auto& entry : all) entry->space->adopt(object, [kept = kept_](int fd) { return kept->knows(fd); });
  serve_waiting();
  changed_.notify_all();
}

Result<std::shared_ptr<AddressSpace>> AddressSpaces::find(const handoff::Token& token) const {
  const MutexLock lock(mutex_);
  for (const auto& entry : entries_) {
    if (!entry->forked && operator_equal(entry->token, token)) return entry->space;
  }
  return fail(Errc::not_found, "no attached address space has this token");
}

std::vector<std::shared_ptr<AddressSpace>> AddressSpaces::all() const {
  std::vector<std::shared_ptr<AddressSpace>> spaces;
  const MutexLock lock(mutex_);
  for (const auto& entry : entries_) spaces.push_back(entry->space);
  return spaces;
}

std::vector<AddressSpaces::Client> AddressSpaces::list() const {
  const MutexLock lock(mutex_);
  std::vector<Client> clients;
  for (const auto& entry : entries_) {
    const pid_t pid = entry->process ? entry->process->pid : 0;
    clients.push_back({.space = entry->space, .pid = pid, .forked = entry->forked});
  }
  return clients;
}

std::size_t AddressSpaces::count() const {
  const MutexLock lock(mutex_);
  return entries_.size();
}

std::size_t AddressSpaces::count_locked(bool forked) const {
  return static_cast<std::size_t>(
      std::ranges::count_if(entries_, [&](const auto& entry) { return entry->forked == forked; }));
}

bool AddressSpaces::full() const {
  const MutexLock lock(mutex_);
  return count_locked(false) >= max_attached_;
}

void AddressSpaces::adopt_child(std::shared_ptr<AddressSpace> child) {
  auto entry = std::make_shared<Entry>();
  entry->forked = true;
  entry->space = std::move(child);
  bool waits = false;
  {
    const MutexLock lock(mutex_);
    entries_.push_back(entry);
    if (count_locked(true) <= max_attached_ && !stopping_) {
      if (auto loop = FaultLoop::start_polling(entry->space)) entry->loop = std::move(*loop);
    }
    waits = entry->loop == nullptr;
  }
  if (waits)
    log(LogLevel::warning, "{} forked, and there is no room to serve the child: it waits", entry->space->name());
  changed_.notify_all();
}

void AddressSpaces::reap() {
  const MutexLock one(reap_mutex_);
  Entries all;
  {
    const MutexLock lock(mutex_);
    all = entries_;
  }
  // A loop may end for other reasons; only an address space that is no more may lose its userfaultfd.
  std::erase_if(all, [](const auto& entry) { return entry->space->alive(); });
  if (!all.empty()) {
    const MutexLock lock(mutex_);
    std::erase_if(entries_, [&](const auto& entry) { return std::ranges::find(all, entry) != all.end(); });
  }
  const bool some = !all.empty();
  forget(all);
  all.clear();  // joins their loops, with no lock of ours that a loop could want
  serve_waiting();
  if (some && hooks_.on_change) hooks_.on_change();
}

void AddressSpaces::serve_waiting() {
  const MutexLock lock(mutex_);
  if (stopping_) return;
  auto served = static_cast<std::size_t>(
      std::ranges::count_if(entries_, [](const auto& entry) { return entry->forked && entry->loop != nullptr; }));
  for (const auto& entry : entries_) {
    if (entry->loop != nullptr || (entry->forked && served >= max_attached_)) continue;
    auto loop = FaultLoop::start_polling(entry->space);
    if (!loop) return;
    entry->loop = std::move(*loop);
    if (entry->forked) ++served;
  }
}

void AddressSpaces::run_reaper() {
  for (;;) {
    {
      const MutexLock lock(mutex_);
      const TimePoint until = Clock::now() + (entries_.empty() ? kNobodyToAsk : kAskEvery);
      const bool nobody = entries_.empty();
      while (!stopping_ && entries_.empty() == nobody) {
        if (!changed_.wait_until(mutex_, until)) break;
      }
      if (stopping_) return;
    }
    reap();
  }
}

void AddressSpaces::stop() {
  {
    const MutexLock lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (reaper_.joinable()) reaper_.join();
  // A loop that read a fork while it was stopped has added a child: taken in the next round.
  for (;;) {
    Entries all;
    {
      const MutexLock lock(mutex_);
      all.swap(entries_);
    }
    if (all.empty()) return;
  }
}

}  // namespace uffda
