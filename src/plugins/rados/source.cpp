// rados:POOL/OBJECT. An image in pieces, each an object of its own, which a header object names.
#include "plugins/rados/source.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "base/log.h"
#include "plugins/rados/lease.h"
#include "plugins/rados/reads.h"
#include "plugins/rados/writes.h"

namespace uffda::sources::rados {
namespace {

constexpr std::size_t kMaxExtents = 4096;

class RadosSource final : public PageSource {
 public:
  /// `writes`: null if it was opened for reading.
  RadosSource(std::shared_ptr<const Cluster> cluster, std::shared_ptr<const Image> image, std::shared_ptr<Reads> reads,
              std::shared_ptr<Writes> writes, std::string version)
      : image_(std::move(image)), reads_(std::move(reads)), writes_(std::move(writes)), cluster_(std::move(cluster)) {
    opened(cluster_->name(), {.size = image_->header().size,
                              .preferred_read = 256_KiB,
                              .parallel = kParallelReads,
                              .writable = writes_ != nullptr,
                              .version = std::move(version)});
  }

  RadosSource(const RadosSource&) = delete;
  RadosSource& operator=(const RadosSource&) = delete;
  ~RadosSource() override {
    if (writes_ && !writes_->close()) {
      log(LogLevel::warning, "{}: librados keeps writes that were given up; the connection is left to it", name());
      // NOLINTNEXTLINE(bugprone-unhandled-exception-at-new): no memory ends the program
      (void)new std::shared_ptr<Writes>(writes_);
    }
    if (reads_->close()) return;
    log(LogLevel::warning, "{}: librados keeps reads that were cancelled; their buffers are left to it", name());
    // And with them the connection. NOLINTNEXTLINE(bugprone-unhandled-exception-at-new): no memory ends the program
    (void)new std::shared_ptr<Reads>(reads_);
  }

 private:
  void do_fetch(FetchTicket ticket) noexcept override { reads_->start(std::move(ticket)); }

  void do_write_back(WriteTicket ticket) noexcept override { writes_->start(std::move(ticket)); }

  /// What the cluster has acknowledged is on the disks of all its copies.
  Result<void> do_flush() override { return {}; }

  Result<std::vector<Extent>> do_extents(ByteRange range) override {
    const Header& header = image_->header();
    std::vector<Extent> extents;
    for (ByteOffset at = range.start; at < range.end() && extents.size() < kMaxExtents;) {
      const std::uint64_t piece = header.piece_of(at);
      const auto kind = image_->is_stored(piece) ? Extent::Kind::data : Extent::Kind::zero;
      const ByteOffset end = std::min(header.range_of(piece).end(), range.end());
      if (extents.empty() || extents.back().kind != kind) extents.push_back({{at, {0}}, kind});
      extents.back().range.length = end - extents.back().range.start;
      at = end;
    }
    return extents;
  }

  std::shared_ptr<const Image> image_;
  std::shared_ptr<Reads> reads_;
  std::shared_ptr<Writes> writes_;
  std::shared_ptr<const Cluster> cluster_;
};

/// What a cache may go by. An image that somebody writes to, or that a writer left who was killed, is another one each
/// time that it is opened.
Result<std::string> version_of(const Header& header, const WriterRecord& last) {
  if (last.number == 0) return header.generation_text();
  if (!last.open) return fmt::format("{}+{}", header.generation_text(), last.number);
  return fmt::format("{}+{:02x}", header.generation_text(), fmt::join(UFFDA_TRY(random_generation()), ""));
}

}  // namespace

Result<std::unique_ptr<PageSource>> open(const SourceUri& uri) {
  const std::shared_ptr<const Cluster> cluster = UFFDA_TRY(Cluster::connect(uri));
  std::unique_ptr<Lease> lease;
  if (uri.what_for() != OpenFor::reading) {
    UFFDA_TRY(cluster->read_header());  // nothing is locked that is no image
    lease = UFFDA_TRY(Lease::take(cluster));
  }
  const WriterRecord last = UFFDA_TRY(WriterRecord::read(*cluster));  // before the header: it may be older, not newer
  Cluster::Found found = UFFDA_TRY(cluster->read_header());
  std::string version = UFFDA_TRY(version_of(found.header, last));
  const auto image = std::make_shared<Image>(std::move(found.header));
  std::shared_ptr<Writes> writes;
  if (lease) {
    writes = std::make_shared<Writes>(cluster, image, std::move(lease));
    UFFDA_TRY_VOID(writes->open());
  }
  auto reads = std::make_shared<Reads>(cluster, image);
  auto source = std::make_unique<RadosSource>(cluster, image, reads, std::move(writes), std::move(version));
  UFFDA_TRY_VOID(reads->open());
  return source;
}

}  // namespace uffda::sources::rados
