#include "sim/source.h"

#include <algorithm>
#include <cstring>

#include "mm/request_table.h"

namespace uffda::sim {
namespace {

// An answer that begins this long before the deadline is in time, whatever the scheduler does to it afterwards.
constexpr Duration kInTime = std::chrono::milliseconds(20);

std::uint64_t first_page(ByteRange range) { return range.start.value / kPage; }
std::uint64_t end_page(ByteRange range) { return align_up(range.end().value, kPage) / kPage; }

}  // namespace

Truth::Truth(std::size_t object, ByteCount size)
    : object_(object), size_(size), pages_(align_up(size.value, kPage) / kPage) {}

PageBytes Truth::bytes(std::uint64_t page, std::uint64_t version) const {
  PageBytes bytes{};
  std::uint64_t word = Random(object_ << 48U ^ page << 16U ^ version).next() | 1U;
  for (std::size_t at = 0; at < bytes.size(); at += sizeof word, ++word) std::memcpy(&bytes[at], &word, sizeof word);
  const std::uint64_t left = size_.value - page * kPage;
  if (left < kPage) std::memset(&bytes[left], 0, kPage - left);
  return bytes;
}

void Truth::settle(std::uint64_t page, std::uint64_t version) {
  pages_[page].settled = std::max(pages_[page].settled, version);
}

PageBytes Truth::store(std::uint64_t page) {
  settle(page, ++pages_[page].version);
  return bytes(page, pages_[page].version);
}

void Truth::take(std::uint64_t page, std::span<const std::byte> taken) {
  for (std::uint64_t version = pages_[page].version + 1; version-- > pages_[page].taken;) {
    if (std::memcmp(bytes(page, version).data(), taken.data(), taken.size()) != 0) continue;
    pages_[page].taken = version;
    return;
  }
  violation(fmt::format("wrong bytes, or old ones, are written back to page {} of object {}", page, object_));
}

void Truth::flush() {
  for (Page& page : pages_) page.flushed = page.taken;
}

bool Truth::has_all() const {
  return std::ranges::all_of(pages_, [](const Page& page) { return page.taken == page.version; });
}

bool Truth::is_version_since(std::uint64_t page, std::uint64_t oldest, std::span<const std::byte> seen,
                             std::size_t skip) const {
  for (std::uint64_t version = pages_[page].version + 1; version-- > oldest;) {
    if (std::memcmp(bytes(page, version).data() + skip, seen.data(), seen.size()) == 0) return true;
  }
  return false;
}

SimulatedSource::SimulatedSource(std::shared_ptr<Truth> truth, const SourceHabits& habits)
    : truth_(std::move(truth)), habits_(habits) {
  for (std::uint64_t page = 0; page < truth_->pages(); ++page) {
    if (random().one_in(habits_.bad_page_one_in)) bad_pages_.insert(page);
  }
  opened(fmt::format("object {}", truth_->object()), {.size = truth_->size(),
                                                      .writable = habits_.writable,
                                                      .reserves = habits_.reserves,
                                                      .immediate = habits_.immediate});
}

SimulatedSource::~SimulatedSource() {
  trace("source of object {} ends, {} answers due", truth_->object(), asked_.size());
  expect_no_lock("the end of a source");
  closing_ = true;
  closes_.wake_all();
  while (!asked_.empty() || !writing_.empty()) answered_.wait();
  if (pusher_ != nullptr) join(pusher_);
}

SimulatedSource::AskedAt SimulatedSource::begin(ByteRange range, TimePoint deadline) {
  expect_no_lock("PageSource::fetch");
  expect_apart(range, asked_);
  expect_apart(range, writing_);
  return asked_.insert(asked_.end(), {.range = range, .deadline = deadline, .bytes = {}});
}

void SimulatedSource::expect_apart(ByteRange range, const std::list<Asked>& others) const {
  for (const Asked& other : others) {
    const bool overlaps = range.start < other.range.end() && other.range.start < range.end();
    // After its deadline a range that is fetched is the core's to ask again.
    if (!overlaps || now() >= other.deadline) continue;
    violation(fmt::format("object {}: bytes {} to {} are asked for while {} to {} are", truth_->object(),
                          range.start.value, range.end().value, other.range.start.value, other.range.end().value));
  }
}

void SimulatedSource::do_fetch(FetchTicket ticket) noexcept {
  const AskedAt asked = begin(ticket.range(), ticket.deadline().when());
  note(Moment::source_asked);
  trace("asks object {} for pages {} to {}", truth_->object(), first_page(ticket.range()), end_page(ticket.range()));
  point();
  if (random().one_in(habits_.at_once_one_in)) return answer(std::move(ticket), asked);
  const bool never = random().one_in(habits_.never_one_in);
  Duration delay = random().up_to(habits_.delay);
  if (random().one_in(habits_.late_one_in))
    delay = ticket.deadline().when() - now() + random().up_to(habits_.delay * 4);
  if (never || now() + delay > ticket.deadline().when() - kInTime) {
    note_failure(ticket.range(), "will be late");
    ++late_;
    note_overdue();
  }
  const TimePoint when = never ? kForever : now() + delay;
  const auto held = std::make_shared<FetchTicket>(std::move(ticket));
  spawn(fmt::format("source {}", truth_->object()), [this, held, asked, when] {
    if (!closing_) closes_.wait(when);
    answer(std::move(*held), asked);
  });
}

void SimulatedSource::answer(FetchTicket ticket, AskedAt asked) {
  const ByteRange range = ticket.range();
  if (now() + kInTime > ticket.deadline().when()) note_failure(range, "is late");
  const auto done = [&] {
    asked_.erase(asked);
    answered_.wake_all();
  };
  if (closing_) {
    // The source waits for its answers, not the other way round.
    std::move(ticket).fail(Error(Errc::cancelled, "the source ends"));
    return done();
  }
  const bool single = range.length.value <= kPage;
  if (fails(range) || random().one_in(habits_.error_one_in)) {
    if (single) note_failure(range, "fails");
    // Answered from the core's point of view as soon as the call begins.
    asked->deadline = now();
    trace("object {}: pages {} to {} fail", truth_->object(), first_page(range), end_page(range));
    std::move(ticket).fail(Error(Errc::io, "simulated"));
    return done();
  }
  fill(range, ticket.buffer());
  asked->deadline = now();
  if (random().one_in(habits_.dropped_one_in)) {
    if (single) note_failure(range, "is dropped");
    {
      const FetchTicket dropped(std::move(ticket));
    }
    return done();
  }
  ByteCount bytes = range.length;
  if (random().one_in(habits_.short_one_in)) {
    bytes.value -= 1 + random().below(bytes.value);
    if (single) note_failure(range, "is short");
  }
  trace("object {}: pages {} to {} are here, {} bytes", truth_->object(), first_page(range), end_page(range),
        bytes.value);
  std::move(ticket).complete(bytes);
  done();
}

void SimulatedSource::fill(ByteRange range, std::span<std::byte> buffer) const {
  for (std::uint64_t page = first_page(range); page < end_page(range); ++page) {
    const PageBytes bytes = truth_->bytes_now(page);
    const std::size_t at = page * kPage - range.start.value;
    const std::size_t length = std::min<std::size_t>(kPage, buffer.size() - at);
    std::memcpy(&buffer[at], bytes.data(), length / 2);
    point();
    std::memcpy(&buffer[at + length / 2], &bytes[length / 2], length - length / 2);
  }
}

bool SimulatedSource::fails(ByteRange range) const {
  const auto bad = bad_pages_.lower_bound(first_page(range));
  return bad != bad_pages_.end() && *bad < end_page(range);
}

void SimulatedSource::note_failure(ByteRange range, const char* why) const {
  trace("object {}: the answer for pages {} to {} {}", truth_->object(), first_page(range), end_page(range), why);
  for (std::uint64_t page = first_page(range); page < end_page(range); ++page) truth_->note_failure(page);
}

void SimulatedSource::note_overdue() const {
  // What will be overdue is noted when it is asked for, so no later than the core finds out.
  if (2 * late_ >= properties().parallel) truth_->note_silence();
}

void SimulatedSource::do_write_back(WriteTicket ticket) noexcept {
  expect_no_lock("PageSource::write_back");
  expect_apart(ticket.range(), asked_);
  expect_apart(ticket.range(), writing_);
  ++writes_;
  // Until its answer, however late that is.
  const AskedAt asked =
      writing_.insert(writing_.end(), {.range = ticket.range(), .deadline = kForever, .bytes = ticket.bytes()});
  trace("object {}: pages {} to {} are written back", truth_->object(), first_page(ticket.range()),
        end_page(ticket.range()));
  point();
  if (random().one_in(habits_.at_once_one_in)) return answer_write(std::move(ticket), asked);
  Duration delay = random().up_to(habits_.delay);
  if (random().one_in(habits_.write_late_one_in)) {
    delay = ticket.deadline().when() - now() + random().up_to(habits_.delay * 4);
    truth_->note_silence();  // for so long there may be no room for what is written
  }
  const TimePoint when = now() + delay;
  const auto held = std::make_shared<WriteTicket>(std::move(ticket));
  spawn(fmt::format("writing {}", truth_->object()), [this, held, asked, when] {
    if (!closing_) closes_.wait(when);
    answer_write(std::move(*held), asked);
  });
}

void SimulatedSource::answer_write(WriteTicket ticket, AskedAt asked) {
  const ByteRange range = ticket.range();
  const bool fails = random().one_in(habits_.write_error_one_in);
  for (std::uint64_t page = first_page(range); page < end_page(range); ++page) {
    if (fails && random().one_in(2)) continue;  // none, some or all of it
    take(*asked, page);
    note(Moment::source_written);
    point();
  }
  trace("object {}: pages {} to {} {}", truth_->object(), first_page(range), end_page(range),
        fails ? "are refused" : "are stored");
  if (fails) truth_->note_silence();
  asked->deadline = now();  // answered; but the source does not end before who hears of it is done
  if (fails && random().one_in(4)) {
    const WriteTicket dropped(std::move(ticket));
  } else if (fails) {
    std::move(ticket).fail(Error(Errc::io, "simulated"));
  } else {
    std::move(ticket).complete();
  }
  writing_.erase(asked);
  answered_.wake_all();
}

void SimulatedSource::take(const Asked& asked, std::uint64_t page) {
  const std::size_t at = page * kPage - asked.range.start.value;
  truth_->take(page, asked.bytes.subspan(at, std::min<std::size_t>(kPage, asked.bytes.size() - at)));
}

void SimulatedSource::end_writes_of_the_dead() {
  for (const Asked& asked : writing_) {
    if (asked.deadline != kForever) continue;
    const std::uint64_t skips_one_in = random().below(3);  // 0: all of it is done, 1: nothing
    for (std::uint64_t page = first_page(asked.range); page < end_page(asked.range); ++page) {
      if (!random().one_in(skips_one_in)) take(asked, page);
    }
  }
}

Result<void> SimulatedSource::do_flush() {
  expect_no_lock("PageSource::flush");
  sleep_for(random().up_to(habits_.delay));
  if (random().one_in(habits_.flush_error_one_in)) return uffda::fail(Errc::io, "simulated");
  truth_->flush();
  return {};
}

Result<void> SimulatedSource::do_reserve(ByteRange range) {
  expect_no_lock("PageSource::reserve");
  sleep_for(random().up_to(habits_.delay));
  if (!random().one_in(habits_.no_space_one_in)) return {};
  note_failure(range, "has no space");
  return uffda::fail(Errc::no_memory, "simulated", ENOSPC);
}

Result<void> SimulatedSource::do_fetch_now(ByteOffset offset, std::span<std::byte> buffer) noexcept {
  const ByteRange range{.start = offset, .length = {buffer.size()}};
  const AskedAt asked = begin(range, kForever);
  trace("asks object {} for pages {} to {}, now", truth_->object(), first_page(range), end_page(range));
  sleep_for(random().up_to(std::chrono::milliseconds(1)));
  const bool failed = fails(range) || random().one_in(habits_.error_one_in);
  if (failed && range.length.value <= kPage) note_failure(range, "fails");
  if (!failed) fill(range, buffer);
  asked_.erase(asked);
  answered_.wake_all();
  if (failed) return uffda::fail(Errc::io);
  return {};
}

void SimulatedSource::do_attach(std::shared_ptr<PageSink> sink) {
  sink_ = std::move(sink);
  if (habits_.pushes == 0) return;
  pusher_ = spawn(fmt::format("pusher {}", truth_->object()), [this] { push_some(); });
}

void SimulatedSource::push_some() {
  for (unsigned i = 0; i < habits_.pushes && !closing_; ++i) {
    closes_.wait(now() + random().up_to(std::chrono::milliseconds(20)));
    const std::uint64_t first = random().below(truth_->pages());
    const std::uint64_t count = std::min(truth_->pages() - first, 1 + random().below(12));
    const std::uint64_t what = random().below(8);
    ++pushes_;
    if (what == 0) {
      push_failure(first, 1);
    } else if (what < 4 && habits_.pushes_change) {
      push_change(first, count);
    } else {
      push(first, count);
    }
  }
}

void SimulatedSource::push(std::uint64_t first, std::uint64_t count) {
  // Not in whole pages: parts at either end are to be ignored.
  const std::uint64_t start = first * kPage + (random().one_in(3) ? random().below(kPage) : 0);
  const std::uint64_t end = std::min((first + count) * kPage, truth_->size().value);
  if (start >= end) return;
  std::vector<std::byte> bytes(end - start);
  for (std::uint64_t page = first; page * kPage < end; ++page) {
    const PageBytes now = truth_->bytes_now(page);
    const std::uint64_t from = std::max(start, page * kPage);
    std::memcpy(&bytes[from - start], &now[from - page * kPage], std::min((page + 1) * kPage, end) - from);
  }
  trace("object {} offers pages {} to {}", truth_->object(), first, first + count);
  (void)sink_->supply({start}, bytes);
}

void SimulatedSource::push_failure(std::uint64_t first, std::uint64_t count) {
  const ByteRange range{.start = {first * kPage},
                        .length = {std::min((first + count) * kPage, truth_->size().value) - first * kPage}};
  note_failure(range, "is announced to fail");
  (void)sink_->fail(range, Error(Errc::io, "announced"));
}

void SimulatedSource::push_change(std::uint64_t first, std::uint64_t count) {
  std::vector<std::uint64_t> versions;
  for (std::uint64_t page = first; page < first + count; ++page) {
    truth_->change(page);
    versions.push_back(truth_->version(page));
  }
  trace("object {}: pages {} to {} change", truth_->object(), first, first + count);
  const ByteRange range{.start = {first * kPage},
                        .length = {std::min((first + count) * kPage, truth_->size().value) - first * kPage}};
  if (sink_->invalidate(range)) {
    for (std::uint64_t page = first; page < first + count; ++page) truth_->settle(page, versions[page - first]);
    trace("object {}: pages {} to {} have changed", truth_->object(), first, first + count);
  }
}

}  // namespace uffda::sim
