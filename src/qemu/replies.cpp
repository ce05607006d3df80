#include "qemu/replies.h"

#include <fmt/format.h>

#include <utility>

#include "qemu/bytes.h"
#include "qemu/words.h"

namespace uffda::qemu {
namespace {

Error broken_reply(std::string_view what) {
  return Error(Errc::protocol, fmt::format("QEMU's answer makes no sense: {}", what));
}

}  // namespace

void ReplyParser::push(std::span<const std::byte> bytes) {
  bytes_.erase(bytes_.begin(), bytes_.begin() + static_cast<std::ptrdiff_t>(std::exchange(begin_, 0)));
  bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
}

Result<std::optional<Reply>> ReplyParser::next() {
  for (;;) {
    Parsed parsed = UFFDA_TRY(parse(std::span<const std::byte>(bytes_).subspan(begin_)));
    if (parsed.taken == 0) return std::nullopt;
    begin_ += parsed.taken;
    if (parsed.reply) return std::move(parsed.reply);
  }
}

Result<ReplyParser::Parsed> ReplyParser::parse(std::span<const std::byte> bytes) {
  ByteReader in(bytes);
  const auto word = in.number<std::uint16_t>();
  const auto length = in.number<std::uint16_t>();
  if (!length) return Parsed{};
  const auto bytes_of_body = in.take(*length);
  if (!bytes_of_body) return Parsed{};
  ByteReader body(*bytes_of_body);
  switch (static_cast<ReplyWord>(*word)) {
    case ReplyWord::request_named:
      return request(in, body, true);
    case ReplyWord::request:
      return request(in, body, false);
    case ReplyWord::received:
      return received(in, body);
    case ReplyWord::pong:
    case ReplyWord::may_switch_over:
      return Parsed{.taken = in.taken(), .reply = {}};
    case ReplyWord::resumed:
      return Parsed{.taken = in.taken(), .reply = Resumed{}};
    case ReplyWord::closed: {
      const auto value = body.number<std::uint32_t>();
      if (!value) return std::unexpected(broken_reply("it closes without a result"));
      return Parsed{.taken = in.taken(), .reply = Closed{.failed = *value != 0}};
    }
  }
  return std::unexpected(broken_reply(fmt::format("a message of kind {}", *word)));
}

Result<ReplyParser::Parsed> ReplyParser::request(ByteReader& in, ByteReader body, bool named) {
  const auto start = body.number<std::uint64_t>();
  const auto length = body.number<std::uint32_t>();
  if (!length) return std::unexpected(broken_reply("a request that is too short"));
  if (named) {
    auto block = body.name();
    if (!block) return std::unexpected(broken_reply("a request without a block"));
    block_ = *std::move(block);
  }
  return Parsed{.taken = in.taken(), .reply = PageRequest{.block = block_, .start = {*start}, .length = {*length}}};
}

/// The bits follow the message: their number, they, and a mark.
Result<ReplyParser::Parsed> ReplyParser::received(ByteReader& in, ByteReader body) {
  auto block = body.name();
  if (!block) return std::unexpected(broken_reply("bits of no block"));
  const auto size = in.number<std::uint64_t>();
  if (!size) return Parsed{};
  if (*size > kMaxBitmap.value) return std::unexpected(broken_reply(fmt::format("{} bytes of bits", *size)));
  const auto bits = in.take(*size);
  if (!bits) return Parsed{};
  const auto end = in.number<std::uint64_t>();
  if (!end) return Parsed{};
  if (*end != kBitmapEnd) return std::unexpected(broken_reply("bits that do not end as they should"));
  return Parsed{.taken = in.taken(),
                .reply = ReceivedPages{.block = *std::move(block), .bits = {bits->begin(), bits->end()}}};
}

std::vector<std::byte> pong(std::uint32_t value) {
  std::vector<std::byte> bytes;
  ByteWriter out(bytes);
  out.number(static_cast<std::uint16_t>(ReplyWord::pong));
  out.number(static_cast<std::uint16_t>(sizeof value));
  out.number(value);
  return bytes;
}

}  // namespace uffda::qemu
