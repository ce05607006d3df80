// What a session asks, without a kernel: for tests and fuzzing of the conversation alone.
#pragma once

#include <fcntl.h>
#include <array>

#include <algorithm>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "base/log.h"
#include "server/session.h"

namespace uffda::test {

class FakeHandoffBackend final : public HandoffBackend {
 public:
  static constexpr std::uint64_t kSize = 1'000'000;
  struct Mapped {
    std::string name;
    MapPlace place;
  };

  Result<Opened> open_export(const std::string& name) override {
    UFFDA_TRY_VOID(known(name));
    return Opened{.size = {kSize},
                  .folio_size = kPageSize,
                  .writable = true,
                  .cache = os::UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC))};
  }
  Result<handoff::Token> attach(Attach request) override {
    UFFDA_ASSERT(request.userfaultfd);
    last_features = request.features;
    handoff::Token token = request.wanted;
    if (token.bytes[0] == 0) token.bytes[0] = ++attached;
    tokens.push_back(std::to_array(token.bytes));
    if (tokens.size() > 16) tokens.erase(tokens.begin());
    return token;
  }
  Result<void> map(const handoff::Token& token, const std::string& name, const MapPlace& place) override {
    UFFDA_TRY_VOID(known(token));
    UFFDA_TRY_VOID(known(name));
    mapped.push_back({name, place});
    if (mapped.size() > 16) mapped.clear();
    return {};
  }
  Result<void> map_shared(const handoff::Token& token, const std::string& name, const MapPlace& place) override {
    return map(token, name, place);
  }
  Result<void> write(const std::string& name, ByteOffset offset, std::span<const std::byte> bytes) override {
    UFFDA_TRY_VOID(known(name));
    UFFDA_ASSERT(bytes.size() <= handoff::kMaxWrite);
    if (offset.value > kSize || bytes.size() > kSize - offset.value) return fail(Errc::out_of_range);
    written += bytes.size();
    return {};
  }
  Result<ByteCount> resize(const std::string& name, std::uint64_t size, Resize) override {
    UFFDA_TRY_VOID(known(name));
    if (size != handoff::kKeepSize && size > kSize) return fail(Errc::out_of_range);
    return ByteCount{size == handoff::kKeepSize ? kSize : size};
  }
  Result<void> sync(const std::string& name, ByteRange range, std::uint64_t& seen) override {
    UFFDA_TRY_VOID(known(name));
    if (range.end().value > kSize || range.end() < range.start) return fail(Errc::out_of_range);
    return std::exchange(seen, std::uint64_t{1}) == 0 ? fail(Errc::io, "told once") : Result<void>{};
  }
  Result<void> unmap(const handoff::Token& token, Address address, ByteCount) override {
    UFFDA_TRY_VOID(known(token));
    std::erase_if(mapped, [&](const Mapped& one) { return one.place.address == address; });
    return {};
  }
  Result<std::size_t> read(const std::string& name, ByteOffset offset, std::span<std::byte> bytes) override {
    UFFDA_TRY_VOID(known(name));
    UFFDA_ASSERT(bytes.size() <= handoff::kMaxRead);
    if (offset.value >= kSize) return 0U;
    const auto part = bytes.first(std::min<std::size_t>(bytes.size(), kSize - offset.value));
    std::memset(part.data(), static_cast<int>(offset.value % 251), part.size());
    return part.size();
  }
  Result<os::UniqueFd> open_device() override { return fail(Errc::permission_denied, "no device here"); }
  Result<std::string> stats() override { return report; }
  Result<void> prepare_takeover() override {
    if (!held) return fail(Errc::unsupported, "no holder");
    return {};
  }

  std::uint64_t written = 0;
  std::string report = "{}\n";
  std::vector<Mapped> mapped;
  std::vector<std::array<std::uint8_t, handoff::kTokenSize>> tokens;
  std::uint8_t attached = 0;
  bool held = false;
  std::uint64_t last_features = 0;

 private:
  static Result<void> known(const std::string& name) {
    UFFDA_ASSERT(!name.empty() && name.size() < handoff::kNameSize);
    if (name == "disk") return {};
    return fail(Errc::not_found, "no export is named '" + name + "'");
  }
  [[nodiscard]] Result<void> known(const handoff::Token& token) const {
    if (std::ranges::find(tokens, std::to_array(token.bytes)) != tokens.end()) return {};
    return fail(Errc::not_found, "no attached address space has this token");
  }
};

}  // namespace uffda::test
