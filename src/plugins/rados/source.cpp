// rados:POOL/OBJECT. An image in pieces, each an object of its own, which a header object names.
#include "plugins/rados/source.h"

#include <algorithm>

#include "base/log.h"
#include "plugins/rados/reads.h"

namespace uffda::sources::rados {
namespace {

constexpr std::size_t kMaxExtents = 4096;

class RadosSource final : public PageSource {
 public:
  RadosSource(std::shared_ptr<const Cluster> cluster, std::shared_ptr<Reads> reads)
      : reads_(std::move(reads)), cluster_(std::move(cluster)) {
    opened(cluster_->name(), {.size = reads_->header().size,
                              .preferred_read = 256_KiB,
                              .parallel = kParallelReads,
                              .version = reads_->header().generation_text()});
  }

  RadosSource(const RadosSource&) = delete;
  RadosSource& operator=(const RadosSource&) = delete;
  ~RadosSource() override {
    if (reads_->close()) return;
    log(LogLevel::warning, "{}: librados keeps reads that were cancelled; their buffers are left to it", name());
    // And with them the connection. NOLINTNEXTLINE(bugprone-unhandled-exception-at-new): no memory ends the program
    (void)new std::shared_ptr<Reads>(reads_);
  }

 private:
  void do_fetch(FetchTicket ticket) noexcept override { reads_->start(std::move(ticket)); }

  Result<std::vector<Extent>> do_extents(ByteRange range) override {
    const Header& header = reads_->header();
    std::vector<Extent> extents;
    for (ByteOffset at = range.start; at < range.end() && extents.size() < kMaxExtents;) {
      const std::uint64_t piece = header.piece_of(at);
      const auto kind = header.is_stored(piece) ? Extent::Kind::data : Extent::Kind::zero;
      const ByteOffset end = std::min(header.range_of(piece).end(), range.end());
      if (extents.empty() || extents.back().kind != kind) extents.push_back({{at, {0}}, kind});
      extents.back().range.length = end - extents.back().range.start;
      at = end;
    }
    return extents;
  }

  std::shared_ptr<Reads> reads_;
  std::shared_ptr<const Cluster> cluster_;
};

}  // namespace

Result<std::unique_ptr<PageSource>> open(const SourceUri& uri) {
  const std::shared_ptr<const Cluster> cluster = UFFDA_TRY(Cluster::connect(uri));
  Cluster::Found found = UFFDA_TRY(cluster->read_header());
  auto reads = std::make_shared<Reads>(cluster, std::move(found.header));
  UFFDA_TRY_VOID(reads->open());
  return std::make_unique<RadosSource>(cluster, std::move(reads));
}

}  // namespace uffda::sources::rados
