#include "mm/request_table.h"

#include <algorithm>

#include "base/log.h"

namespace uffda {

FetchRequest* RequestTable::find(FolioIndex index) {
  std::size_t left = in_use_;
  for (FetchRequest* request = requests_->data(); left != 0; ++request) {
    if (!request->in_use) continue;
    if (!request->abandoned && request->range.contains(index)) return request;
    --left;
  }
  return nullptr;
}

bool RequestTable::lent(FolioIndex index) const {
  return std::ranges::any_of(
      *requests_, [&](const FetchRequest& request) { return request.in_use && request.range.contains(index); });
}

bool RequestTable::room_for(FetchFor purpose) const {
  const std::size_t half = std::max(most_ / 2, std::size_t{1});
  switch (purpose) {
    case FetchFor::demand:
      return in_use_ < most_;
    case FetchFor::ahead:
      return in_use_ < half;
    case FetchFor::background:
      return in_use_ < half && background_ < std::max(half / 2, std::size_t{1});
  }
  return false;
}

FetchRequest* RequestTable::add(FolioRange range, std::span<std::byte> buffer, TimePoint now, Deadline deadline,
                                FetchFor purpose) {
  auto* const slot = std::ranges::find(*requests_, false, &FetchRequest::in_use);
  if (slot == requests_->end()) return nullptr;
  slot->range = range;
  slot->buffer = buffer;
  slot->started = now;
  slot->deadline = deadline;
  slot->in_use = true;
  slot->background = purpose == FetchFor::background;
  slot->warned = false;
  slot->publishing = false;
  slot->abandoned = false;
  slot->stale = false;
  slot->sleepers = 0;
  ++in_use_;
  if (slot->background) {
    ++background_;
    background_folios_ += range.count;
  }
  return &*slot;
}

bool RequestTable::join(FetchRequest& request, const FolioWait& wait) {
  const std::span waits(request.waits.data(), request.wait_count);
  const bool known = std::ranges::any_of(
      waits, [&](const FolioWait& other) { return other.waiter == wait.waiter && other.base == wait.base; });
  if (known) return true;
  if (request.wait_count == FetchRequest::kMaxWaits) return false;
  request.waits.at(request.wait_count++) = wait;
  return true;
}

std::vector<FolioWait> RequestTable::take_waits(FetchRequest& request) {
  std::vector<FolioWait> waits(request.wait_count);
  std::ranges::move(request.waits.begin(), request.waits.begin() + static_cast<std::ptrdiff_t>(request.wait_count),
                    waits.begin());
  request.wait_count = 0;
  return waits;
}

std::vector<FolioWait> RequestTable::finish(FetchRequest& request) {
  UFFDA_ASSERT(request.in_use);
  request.in_use = false;
  --in_use_;
  if (request.background) {
    --background_;
    background_folios_ -= request.range.count;
  }
  return take_waits(request);
}

std::vector<FolioWait> RequestTable::abandon(FetchRequest& request) {
  request.abandoned = true;
  return take_waits(request);
}

}  // namespace uffda
