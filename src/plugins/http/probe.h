// What an object is: one byte of it is asked for. The answer says whether ranges are served at all, the size, and what
// to pin; a HEAD request says less, and signed URLs refuse it.
#pragma once

#include "plugins/http/exchange.h"

namespace uffda::sources::http {

struct Object {
  ByteCount size;
  Pin pin;
};

class Probe final : public Exchange {
 public:
  explicit Probe(const Target& target) : Exchange(target) {}
  void start(const Credentials& keys);
  /// After finish() succeeded.
  [[nodiscard]] const Object& object() const { return object_; }

 private:
  Result<void> do_accept() override;
  Result<void> do_take(std::span<const std::byte> bytes) override;
  Result<void> do_end() override { return {}; }

  Object object_;
  std::size_t taken_ = 0;
};

}  // namespace uffda::sources::http
