// uffda-http.so: http:, https: and s3:, see docs/design/sources.md.
#include "sources/plugin.h"

#include "plugins/http/event_loop.h"

namespace uffda::sources::http {
namespace {

/// A request costs a round trip, however little it asks for.
constexpr ByteCount kPreferredRead = 256_KiB;

class HttpSource final : public PageSource {
 public:
  explicit HttpSource(std::unique_ptr<EventLoop> loop) : loop_(std::move(loop)) {
    const Target& target = loop_->target();
    opened(target.name,
           {.size = loop_->object().size, .preferred_read = kPreferredRead, .parallel = target.parallel()});
  }

 private:
  void do_fetch(FetchTicket ticket) noexcept override { loop_->fetch(std::move(ticket)); }

  std::unique_ptr<EventLoop> loop_;
};

Result<std::unique_ptr<PageSource>> open(const SourceUri& uri) {
  std::unique_ptr<EventLoop> loop = UFFDA_TRY(EventLoop::open(UFFDA_TRY(target_of(uri))));
  return std::make_unique<HttpSource>(std::move(loop));
}

}  // namespace
}  // namespace uffda::sources::http

extern "C" [[gnu::visibility("default")]] const uffda::sources::SourcePlugin uffda_source_plugin = {
    .build = UFFDA_PLUGIN_BUILD, .open = uffda::sources::http::open, .create = nullptr};
