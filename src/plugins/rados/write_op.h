// An operation that changes one object: all of its steps, or none.
#pragma once

#include <rados/librados.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace uffda::sources::rados {

class WriteOp {
 public:
  WriteOp() : op_(::rados_create_write_op()) {}
  WriteOp(const WriteOp&) = delete;
  WriteOp& operator=(const WriteOp&) = delete;
  ~WriteOp() { ::rados_release_write_op(op_); }
  [[nodiscard]] rados_write_op_t get() const { return op_; }

  void write(std::span<const std::byte> bytes, std::uint64_t offset) {
    ::rados_write_op_write(op_, reinterpret_cast<const char*>(bytes.data()), bytes.size(), offset);
  }
  void write_full(std::span<const std::byte> bytes) {
    ::rados_write_op_write_full(op_, reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  /// The operation fails with ECANCELED unless `value` compares so to the attribute, as strings; one that is not there
  /// is empty.
  void require(const char* attribute, std::uint8_t comparison, const std::string& value) {
    ::rados_write_op_cmpxattr(op_, attribute, comparison, value.data(), value.size());
  }
  void set(const char* attribute, const std::string& value) {
    ::rados_write_op_setxattr(op_, attribute, value.data(), value.size());
  }

 private:
  rados_write_op_t op_;
};

}  // namespace uffda::sources::rados
