#include "qemu/ram_push.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "os/socket.h"

namespace uffda::qemu {
namespace {

constexpr std::size_t kBatchBytes = std::size_t{64} << 10U;  // that may stand before an answer
constexpr std::uint64_t kZeroBatch = 256;                    // pages of zeroes: 9 bytes each
constexpr std::uint64_t kAround = 4;                         // pages at least that are sent for one that was asked for
constexpr ByteCount kAroundInFlight = 1_MiB;
constexpr Duration kQuiet = std::chrono::milliseconds(100);  // without a request, before more is sent than asked for
// A guest that never stops asking is not served for ever: of so much time this much is for what nobody asked for.
constexpr Duration kPeriod = std::chrono::seconds(1);
constexpr Duration kPushed = std::chrono::milliseconds(200);
constexpr Duration kStuck = std::chrono::seconds(30);  // QEMU takes nothing, or does not answer

}  // namespace

Result<std::shared_ptr<NewsBell>> NewsBell::create() {
  os::UniqueFd fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!fd) return fail_errno(errno, "eventfd");
  return std::shared_ptr<NewsBell>(new NewsBell(std::move(fd)));
}

void NewsBell::ring() const { (void)::eventfd_write(fd_.get(), 1); }

void NewsBell::silence() const {
  eventfd_t rings = 0;
  (void)::eventfd_read(fd_.get(), &rings);
}

void NewsBell::folios_news(const MemoryObject&, std::uint64_t, FolioRange, FolioNews, std::span<const std::byte>) {
  ring();
}

Result<std::unique_ptr<RamPush>> RamPush::create(const Machine& machine, os::UniqueFd stream,
                                                 std::vector<PushRun> recorded, Cancel cancel) {
  auto bell = UFFDA_TRY(NewsBell::create());
  const int room = static_cast<int>(kBatchBytes);
  (void)::setsockopt(stream.get(), SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
  return std::unique_ptr<RamPush>(
      new RamPush(machine, std::move(stream), std::move(bell), std::move(recorded), cancel));
}

RamPush::RamPush(const Machine& machine, os::UniqueFd stream, std::shared_ptr<NewsBell> bell,
                 std::vector<PushRun> recorded, Cancel cancel)
    : machine_(machine),
      units_(machine.ram()),
      stream_(std::move(stream)),
      bell_(std::move(bell)),
      cancel_(cancel),
      input_(std::size_t{64} << 10U),
      output_moved_(Clock::now()),
      sent_(units_.count()),
      left_(units_.count()),
      recorded_(std::move(recorded)),
      planner_([this] { plan_everything(); }) {}

RamPush::~RamPush() {
  planning_ends_ = true;
  planner_.join();
}

void RamPush::plan_everything() {
  for (std::size_t block = 0; block < machine_.blocks.size() && !planning_ends_; ++block) plan_block(block);
}

/// What the source says of the block, and data where it says nothing: what is planned twice is sent once.
void RamPush::plan_block(std::size_t block) {
  const ServedBlock& served = machine_.blocks[block];
  for (std::uint64_t at = 0; at < served.block.length.value && !planning_ends_;) {
    const ByteCount left{served.block.length.value - at};
    auto known = served.object->source().extents({.start = served.place + ByteCount{at}, .length = left});
    if (!known || known->empty()) known = std::vector<Extent>{{.range = {.start = served.place, .length = left}}};
    const MutexLock lock(plan_mutex_);
    for (const Extent& extent : *known) {
      const ByteRange part{.start = {at}, .length = std::min(extent.range.length, {served.block.length.value - at})};
      if (part.empty()) break;
      const PushRun run = units_of(units_, block, part, extent.kind);
      if (run.count != 0) planned_.push_back(run);
      at = part.end().value;
    }
    bell_->ring();
  }
  const MutexLock lock(plan_mutex_);
  planned_.push_back({.first = units_.at(block, {}), .count = units_.end(block) - units_.at(block, {})});
  bell_->ring();
}

template <typename Done>
Result<void> RamPush::exchange_until(const Done& done, const char* what, Interrupted interrupted) {
  const Deadline deadline = Deadline::after(kStuck);
  while (!done()) {
    if (interrupted == Interrupted::at_once) UFFDA_TRY_VOID(cancel_.check());
    if (deadline.passed()) return fail(Errc::timed_out, fmt::format("QEMU does not {} in time", what));
    UFFDA_TRY_VOID(exchange());
  }
  return {};
}

Result<void> RamPush::start() {
  output_ = to_start(machine_.state, machine_.ram());
  // QEMU would end if it had only a part of it.
  return exchange_until([this] { return output_.empty(); }, "take the state of its devices", Interrupted::afterwards);
}

Result<void> RamPush::resume() {
  counts_.resumed = true;
  output_ = to_ask_received(machine_.ram());
  UFFDA_TRY_VOID(
      exchange_until([this] { return bitmaps_ >= machine_.blocks.size(); }, "say what it has", Interrupted::at_once));
  const auto more = to_resume();
  output_.insert(output_.end(), more.begin(), more.end());
  return exchange_until([this] { return resumed_; }, "go on", Interrupted::at_once);
}

Result<void> RamPush::run() {
  while (left_ != 0) {
    UFFDA_TRY_VOID(cancel_.check());
    again_soon_ = false;
    UFFDA_TRY_VOID(serve_demand());
    if (output_.empty()) push_some();
    if (left_ != 0) UFFDA_TRY_VOID(exchange());
  }
  const auto end = to_end();
  output_.insert(output_.end(), end.begin(), end.end());
  return exchange_until([this] { return closed_; }, "say that it has everything", Interrupted::at_once);
}

Result<void> RamPush::exchange() {
  UFFDA_TRY_VOID(flush());
  std::array<pollfd, 2> entries{
      {{.fd = stream_.get(), .events = POLLIN, .revents = 0}, {.fd = bell_->fd(), .events = POLLIN, .revents = 0}}};
  if (!output_.empty()) entries[0].events |= POLLOUT;
  if (::poll(entries.data(), entries.size(), patience_ms()) < 0 && errno != EINTR) return fail_errno(errno, "poll");
  if (entries[1].revents != 0) {
    bell_->silence();
    push_waits_ = false;
    plan_is_short_ = false;
  }
  if ((entries[0].revents & (POLLIN | POLLHUP | POLLERR)) != 0) UFFDA_TRY_VOID(receive());
  return flush();
}

int RamPush::patience_ms() const {
  if (again_soon_) return 1;
  if (!output_.empty() || push_waits_ || plan_is_short_ || left_ == 0) return static_cast<int>(Cancel::kLook.count());
  if (demand_.empty() && may_push()) return 0;
  return static_cast<int>(std::chrono::milliseconds(5).count());
}

Result<void> RamPush::receive() {
  for (;;) {
    const auto received = os::receive_some(stream_.get(), input_);
    if (!received && received.error().code() == Errc::again) return {};
    if (!received && received.error().code() == Errc::gone && closed_) return {};
    if (!received)
      return std::unexpected(received.error().within("QEMU ended the migration: its own messages say why"));
    replies_.push(*received);
    while (auto reply = UFFDA_TRY(replies_.next())) UFFDA_TRY_VOID(handle(*reply));
  }
}

Result<void> RamPush::flush() {
  while (!output_.empty()) {
    const auto rest = std::span<const std::byte>(output_).subspan(output_begin_);
    const auto sent = os::send_some(stream_.get(), rest);
    if (!sent && sent.error().code() == Errc::again) {
      if (Clock::now() - output_moved_ < kStuck) return {};
      return fail(Errc::timed_out, "QEMU takes no more of the stream");
    }
    if (!sent && sent.error().code() == Errc::gone)
      return std::unexpected(sent.error().within("QEMU ended the migration: its own messages say why"));
    output_begin_ += UFFDA_TRY(sent);
    output_moved_ = Clock::now();
    if (output_begin_ < output_.size()) continue;
    output_.clear();
    output_begin_ = 0;
  }
  output_moved_ = Clock::now();
  return {};
}

Result<void> RamPush::handle(const Reply& reply) {
  if (const auto* request = std::get_if<PageRequest>(&reply)) return note_request(*request);
  if (const auto* received = std::get_if<ReceivedPages>(&reply)) return note_received(*received);
  if (std::holds_alternative<Resumed>(reply)) resumed_ = true;
  if (const auto* closed = std::get_if<Closed>(&reply)) {
    closed_ = true;
    if (closed->failed || left_ != 0) return fail(Errc::io, "QEMU gave the migration up: its own messages say why");
  }
  return {};
}

Result<std::size_t> RamPush::find_block(const std::string& name) const {
  const auto found = std::ranges::find(machine_.blocks, name, [](const ServedBlock& one) { return one.block.name; });
  if (found != machine_.blocks.end()) return static_cast<std::size_t>(found - machine_.blocks.begin());
  return fail(Errc::protocol,
              fmt::format("QEMU asks for the block '{}', which the stored machine does not have", name));
}

Result<void> RamPush::note_request(const PageRequest& request) {
  const std::size_t block = UFFDA_TRY(find_block(request.block));
  const std::uint64_t length = machine_.blocks[block].block.length.value;
  if (request.length.value == 0 || request.start.value >= length || request.length.value > length - request.start.value)
    return fail(Errc::protocol, fmt::format("QEMU asks for bytes outside of the block '{}'", request.block));
  const UnitIndex last = units_.at(block, {request.start.value + request.length.value - 1});
  for (UnitIndex unit = units_.at(block, request.start); unit <= last; ++unit)
    demand_.push_back({.unit = unit, .around = std::max(kAround, clusters_.note(unit))});
  last_demand_ = Clock::now();
  return {};
}

Result<void> RamPush::note_received(const ReceivedPages& received) {
  const std::size_t block = UFFDA_TRY(find_block(received.block));
  const RamBlock& ram = machine_.blocks[block].block;
  const std::uint64_t pages = ram.length.value / kTargetPage.value;
  if (received.bits.size() < (pages + 7) / 8)
    return fail(Errc::protocol, fmt::format("QEMU says too little of the block '{}'", received.block));
  const std::uint64_t each = units_.size(block).value / kTargetPage.value;
  for (std::uint64_t page = 0; page < pages; page += each) {
    const auto byte = std::to_integer<unsigned>(received.bits[page / 8]);
    const UnitIndex unit = units_.at(block, {page * kTargetPage.value});
    if ((byte >> (page % 8) & 1U) == 0 || sent_[unit]) continue;
    sent_[unit] = true;
    --left_;
    ++counts_.before;
  }
  ++bitmaps_;
  return {};
}

Result<void> RamPush::serve_demand() {
  for (std::size_t i = demand_.size(); i > 0; --i) {
    const Demand demand = demand_.front();
    const UnitIndex unit = demand.unit;
    demand_.pop_front();
    around_ = demand.around;
    switch (send(unit, true)) {
      case Look::sent:
        send_around(unit);
        break;
      case Look::waits:
        demand_.push_back(demand);
        break;
      case Look::failed: {
        const auto place = units_.place(unit);
        return fail(Errc::io,
                    fmt::format("page {:#x} of '{}' cannot be had from its source; the machine waits, with all "
                                "that was sent: run this restore again when the source is back",
                                place.offset.value, machine_.blocks[place.block].block.name));
      }
    }
  }
  return {};
}

RamPush::Look RamPush::send(UnitIndex unit, bool asked) {
  if (sent_[unit]) return Look::sent;
  const auto place = units_.place(unit);
  const ServedBlock& served = machine_.blocks[place.block];
  page_.resize(served.block.page_size.value);
  if (const Look look = read_unit(served, place.offset, page_, asked); look != Look::sent) return look;
  {
    PageSection section(output_, served.block.name);
    for (std::uint64_t at = 0; at < page_.size(); at += kTargetPage.value)
      section.page(place.offset + ByteCount{at}, std::span(page_).subspan(at, kTargetPage.value));
  }
  note_sent(unit);
  if (asked) {
    ++counts_.asked;
    counts_.asked_bytes += served.block.page_size;
  } else {
    ++counts_.pushed;
  }
  return Look::sent;
}

FolioRange RamPush::around(const MemoryObject& object, FolioIndex index) const {
  return group_of(index, around_, object.folios());
}

/// Every request costs QEMU and its guest some switches between threads: what lies beside it and is cached goes along.
void RamPush::send_around(UnitIndex unit) {
  const auto place = units_.place(unit);
  const ServedBlock& served = machine_.blocks[place.block];
  if (served.block.page_size != served.object->folio_size()) return;  // large pages are enough by themselves
  const FolioIndex index = (served.place.value + place.offset.value) / served.object->folio_size().value;
  const FolioRange folios = around(*served.object, index);
  for (FolioIndex i = folios.first; i < folios.end(); ++i) {
    const UnitIndex other = unit + i - index;
    const bool of_block = other < units_.end(place.block) && other >= units_.at(place.block, {});
    if (!of_block || sent_[other] || !is_present(served.object->states().get(i))) continue;
    if (send(other, false) == Look::sent) served.object->note_touched({.first = i, .count = 1});
  }
}

RamPush::Look RamPush::read_unit(const ServedBlock& served, ByteOffset offset, std::span<std::byte> bytes, bool asked) {
  MemoryObject& object = *served.object;
  const std::uint64_t folio = object.folio_size().value;
  const FolioIndex first = (served.place.value + offset.value) / folio;
  for (std::uint64_t i = 0; i < bytes.size() / folio; ++i) {
    const Look look = read_folio(object, first + i, bytes.subspan(i * folio, folio), asked);
    if (look != Look::sent) return look;
  }
  return Look::sent;
}

RamPush::Look RamPush::read_folio(MemoryObject& object, FolioIndex index, std::span<std::byte> bytes, bool asked) {
  if (asked) object.note_touched({.first = index, .count = 1});
  for (;;) {
    if (const auto folio = object.get_folio(index)) {
      if (!object.backing().read(object.bytes_of({.first = index, .count = 1}).start, bytes)) return Look::failed;
      if (object.triggers_read_ahead(index)) object.note_hit(index);
      return Look::sent;
    }
    // One read for all that will be sent with it; if there is no room for that, only what was asked for is fetched.
    if (asked) {
      [[maybe_unused]] const auto with_it = object.prefetch(around(object, index), kAroundInFlight);
    }
    switch (object.fault(index, {.waiter = bell_, .base = 0})) {
      case FaultOutcome::ready:
        continue;
      case FaultOutcome::queued:
        return Look::waits;
      case FaultOutcome::later:
        again_soon_ = true;
        return Look::waits;
      case FaultOutcome::poisoned:
        return Look::failed;
    }
  }
}

void RamPush::note_sent(UnitIndex unit) {
  sent_[unit] = true;
  --left_;
}

bool RamPush::may_push() const {
  if (from_recording_ && run_.count != 0) return true;
  const TimePoint now = Clock::now();
  return now - last_demand_ >= kQuiet || (now - begun_) % kPeriod >= kPeriod - kPushed;
}

bool RamPush::next_planned() {
  if (run_.count != 0) return true;
  from_recording_ = recorded_at_ < recorded_.size();
  if (from_recording_) {
    run_ = recorded_[recorded_at_++];
    return true;
  }
  const MutexLock lock(plan_mutex_);
  plan_is_short_ = planned_at_ == planned_.size();
  if (plan_is_short_) return false;
  run_ = planned_[planned_at_++];
  return true;
}

void RamPush::skip_sent() {
  while (run_.count != 0 && sent_[run_.first])
    run_ = {.first = run_.first + 1, .count = run_.count - 1, .zero = run_.zero};
}

/// Into output that is empty: a batch, or what is cached of it. What cannot be had nobody has asked for yet: left for
/// later, when somebody does, or the plan is through.
void RamPush::push_some() {
  if (push_waits_) return;
  while (output_.size() < kBatchBytes && next_planned()) {
    skip_sent();
    if (run_.count == 0) continue;
    if (!may_push()) return;
    if (run_.zero) {
      push_zeroes();
      continue;
    }
    const Look look = send(run_.first, false);
    if (look == Look::waits) {
      push_waits_ = !again_soon_;
      return;
    }
    if (look == Look::failed) demand_.push_back({.unit = run_.first});  // which says so, and ends the session
    if (look == Look::failed) return;
  }
}

void RamPush::push_zeroes() {
  const std::size_t block = units_.place(run_.first).block;
  PageSection section(output_, machine_.blocks[block].block.name);
  for (std::uint64_t n = 0; n < kZeroBatch && run_.count != 0; ++n) {
    const UnitIndex unit = run_.first;
    run_ = {.first = unit + 1, .count = run_.count - 1, .zero = true};
    if (sent_[unit]) continue;
    const auto place = units_.place(unit);
    for (std::uint64_t at = 0; at < units_.size(block).value; at += kTargetPage.value)
      section.zero_page(place.offset + ByteCount{at});
    note_sent(unit);
    ++counts_.pushed;
    ++counts_.zeroes;
  }
}

}  // namespace uffda::qemu
