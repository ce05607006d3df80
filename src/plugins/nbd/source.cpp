// nbd:// and its kin on libnbd. What a request goes through stands in requests.h, what a connection does in
// connection.h.
//
//   1. Opening connects once, in the calling thread; the size is that of then.
//   2. fetch queues the ticket and wakes a connection, which reads into the ticket's buffer. Fetches that come together
//      are sent together.
//   3. Together with the first fetch of a region goes a question which of its ranges are zeroes; later fetches of those
//   are
//      answered on the spot. As with every source, the bytes are taken to stay what they are.
#include <algorithm>
#include <bit>

#include <fmt/format.h>

#include "plugins/nbd/connection.h"
#include "sources/plugin.h"

namespace uffda::nbd {

namespace {

constexpr unsigned kDefaultConnections = 4;
constexpr std::chrono::seconds kExtentsTimeout{30};
constexpr std::chrono::seconds kFlushTimeout{30};

class NbdSource final : public PageSource {
 public:
  static Result<std::unique_ptr<PageSource>> open(const SourceUri& uri) {
    sources::NbdAddress address = UFFDA_TRY(sources::NbdAddress::from(uri));
    Session first = UFFDA_TRY(connect(address, Deadline::after(address.connect_timeout), {}));
    const unsigned wanted = address.connections.value_or(kDefaultConnections);
    if (!first.several_allowed && address.connections && wanted > 1)
      return fail(
          Errc::unsupported,
          address.name + ": the server does not allow several connections of one client: leave out connections=");
    const bool writes = uri.what_for() != OpenFor::reading;
    if (writes && !first.writable)
      return fail(Errc::permission_denied, address.name + ": the server lets nobody write to this export");
    if (writes && first.min_block > kPageSize.value) {
      return fail(Errc::unsupported, fmt::format("{}: the server writes blocks of {} bytes, and pages have {}",
                                                 address.name, first.min_block, kPageSize.value));
    }
    auto source = std::make_unique<NbdSource>(std::move(address), first, writes);
    const unsigned count = first.several_allowed ? wanted : 1;
    UFFDA_TRY_VOID(source->fleet_.start(std::move(first), count));
    return source;
  }

  NbdSource(sources::NbdAddress address, const Session& first, bool writes) : fleet_(address, requests_) {
    requests_.open(address.name, first.size, first.min_block);
    opened(address.name,
           {.size = first.size,
            .preferred_read = {std::clamp<std::uint64_t>(std::bit_ceil(first.preferred), 65536, 1U << 20U)},
            .unit = {first.min_block},
            .parallel = RequestTable::kReads,
            .writable = writes});
  }

  ~NbdSource() override { requests_.close(Error(Errc::cancelled, name() + ": closed")); }

 private:
  void do_fetch(FetchTicket ticket) noexcept override {
    if (requests_.add(std::move(ticket))) fleet_.wake_one();
  }

  void do_write_back(WriteTicket ticket) noexcept override {
    if (requests_.add(std::move(ticket))) fleet_.wake_one();
  }

  Result<void> do_flush() override {
    return requests_.flush(Deadline::after(kFlushTimeout), [this] { fleet_.wake_one(); });
  }

  Result<std::vector<Extent>> do_extents(ByteRange range) override {
    return requests_.extents(range, Deadline::after(kExtentsTimeout), [this] { fleet_.wake_one(); });
  }

  RequestTable requests_;
  Fleet fleet_;
};

}  // namespace

}  // namespace uffda::nbd

extern "C" __attribute__((visibility("default"))) const uffda::sources::SourcePlugin uffda_source_plugin = {
    .build = UFFDA_PLUGIN_BUILD, .open = uffda::nbd::NbdSource::open, .create = nullptr};
