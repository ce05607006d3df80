#include "support/test_support.h"

namespace uffda::test {
namespace {

class PatternSource final : public PageSource {
 public:
  explicit PatternSource(ByteCount size) { opened("pattern", {.size = size, .immediate = true}); }

 private:
  void do_fetch(FetchTicket ticket) noexcept override { answer(std::move(ticket)); }
  Result<void> do_fetch_now(ByteOffset offset, std::span<std::byte> buffer) noexcept override {
    Pattern::fill(buffer, offset.value);
    return {};
  }
};

}  // namespace

std::unique_ptr<PageSource> pattern_source(ByteCount size) { return std::make_unique<PatternSource>(size); }

void answer(FetchTicket ticket) {
  Pattern::fill(ticket.buffer(), ticket.range().start.value);
  const ByteCount all = ticket.range().length;
  std::move(ticket).complete(all);
}

}  // namespace uffda::test
