#include "plugins/http/probe.h"

#include "sources/http/values.h"

namespace uffda::sources::http {

void Probe::start(const Credentials& keys) {
  taken_ = 0;
  prepare({.range = {{0}, {1}}, .keys = &keys, .connect_timeout = target().connect_timeout});
}

Result<void> Probe::do_accept() {
  if (status() == 200) {
    return fail(
        Errc::unsupported,
        "the server sends the whole object when it is asked for a range: use a server that answers with 206, or "
        "copy the object and name it with file:");
  }
  const ContentRange got = UFFDA_TRY(parse_content_range(headers().find("content-range")));
  if (got.range != ByteRange{{0}, {1}})
    return fail(Errc::protocol, "the server sends another range than was asked for");
  object_ = {.size = got.total, .pin = pin_of(headers())};
  if (object_.pin.empty() && !target().unpinned) {
    return fail(Errc::unsupported,
                "the server sends neither a strong ETag nor Last-Modified, so that a change of the object would not be "
                "noticed and bytes of two versions could be mixed; unpinned=on takes that risk");
  }
  return {};
}

Result<void> Probe::do_take(std::span<const std::byte> bytes) {
  taken_ += bytes.size();
  if (taken_ > 1) return fail(Errc::protocol, "the server sends more bytes than were asked for");
  return {};
}

}  // namespace uffda::sources::http
