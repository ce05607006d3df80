#include "support/mm_tickets.h"

#include <algorithm>
#include <utility>

#include "support/mm_fake_userfault.h"

namespace uffda::test {
namespace {

class TicketSource final : public PageSource {
 public:
  TicketSource(std::shared_ptr<Tickets> tickets, ByteCount size) : tickets_(std::move(tickets)) {
    opened("tickets", {.size = size});
  }
  ~TicketSource() override { tickets_->fail_all(Error(Errc::cancelled, "the source is closed")); }

 private:
  void do_fetch(FetchTicket ticket) noexcept override { tickets_->add(std::move(ticket)); }
  void do_attach(std::shared_ptr<PageSink> sink) override { tickets_->sink = std::move(sink); }

  std::shared_ptr<Tickets> tickets_;
};

}  // namespace

void Tickets::add(FetchTicket ticket) {
  {
    const std::scoped_lock lock(mutex_);
    asked_.push_back(ticket.range());
    tickets_.push_back(std::move(ticket));
  }
  changed_.notify_all();
}

bool Tickets::wait_for(std::size_t count) const {
  std::unique_lock lock(mutex_);
  return changed_.wait_until(lock, Clock::now() + kPatience, [&] { return asked_.size() >= count; });
}

std::vector<ByteRange> Tickets::asked() const {
  const std::scoped_lock lock(mutex_);
  return asked_;
}

std::optional<FetchTicket> Tickets::take() {
  const std::scoped_lock lock(mutex_);
  if (tickets_.empty()) return std::nullopt;
  FetchTicket ticket = std::move(tickets_.front());
  tickets_.erase(tickets_.begin());
  return ticket;
}

std::optional<FetchTicket> Tickets::take(ByteOffset offset) {
  const std::scoped_lock lock(mutex_);
  const auto at = std::ranges::find_if(tickets_, [&](const FetchTicket& ticket) {
    return offset >= ticket.range().start && offset < ticket.range().end();
  });
  if (at == tickets_.end()) return std::nullopt;
  FetchTicket ticket = std::move(*at);
  tickets_.erase(at);
  return ticket;
}

std::size_t Tickets::held() const {
  const std::scoped_lock lock(mutex_);
  return tickets_.size();
}

void Tickets::answer_all() {
  while (auto ticket = take()) answer(std::move(*ticket));
}

void Tickets::fail_all(const Error& error) {
  while (auto ticket = take()) std::move(*ticket).fail(error);
}

std::unique_ptr<PageSource> ticket_source(std::shared_ptr<Tickets> tickets, ByteCount size) {
  return std::make_unique<TicketSource>(std::move(tickets), size);
}

std::unique_ptr<PageSource> answering_source(ByteCount size, std::function<void(FetchTicket)> answer) {
  return std::make_unique<HeldSource>(size, std::move(answer));
}

}  // namespace uffda::test
