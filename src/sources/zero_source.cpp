// zero:SIZE. A source of zero bytes: the cheapest there is, for measuring everything but the source.
#include <algorithm>

#include "sources/builtin.h"

namespace uffda::sources {

namespace {

class ZeroSource final : public PageSource {
 public:
  static Result<std::unique_ptr<PageSource>> open(const SourceUri& uri) {
    auto size = parse_size(uri.rest());
    if (!size) return std::unexpected(size.error().within("zero:" + uri.rest()));
    if (size->value == 0) return fail(Errc::invalid_argument, "zero:" + uri.rest() + ": the size must not be 0");
    auto source = std::make_unique<ZeroSource>();
    source->opened("zero:" + uri.rest(), {.size = *size, .immediate = true});
    return source;
  }

 private:
  void do_fetch(FetchTicket ticket) noexcept override {
    const ByteCount length = ticket.range().length;
    std::ranges::fill(ticket.buffer().first(length.value), std::byte{0});
    std::move(ticket).complete(length);
  }

  Result<void> do_fetch_now(ByteOffset, std::span<std::byte> buffer) noexcept override {
    std::ranges::fill(buffer, std::byte{0});
    return {};
  }

  Result<std::vector<Extent>> do_extents(ByteRange range) override {
    return std::vector{Extent{.range = range, .kind = Extent::Kind::zero}};
  }
};

}  // namespace

SourceScheme zero_scheme() {
  return {.name = "zero",
          .syntax = "zero:SIZE",
          .help = "zero bytes: for tests and measurements",
          .parameters = {},
          .open = ZeroSource::open};
}

}  // namespace uffda::sources
