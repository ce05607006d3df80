#include "uffda/result.h"

#include <cerrno>
#include <cstring>

namespace uffda {

namespace {

/// Which code a caller can act on for an errno. What is not listed is an I/O failure.
Errc code_of(int sys_errno) noexcept {
  switch (sys_errno) {
    case EINVAL:
    case ENAMETOOLONG:
    case EISDIR:
    case ENOTDIR:
    case EFAULT:
      return Errc::invalid_argument;
    case ENOENT:
    case ENXIO:
    case ENODEV:
      return Errc::not_found;
    case EEXIST:
      return Errc::already_exists;
    case ERANGE:
    case EOVERFLOW:
    case EFBIG:
      return Errc::out_of_range;
    case ENOSYS:
    case EOPNOTSUPP:
    case ENOTTY:
    case EAFNOSUPPORT:
      return Errc::unsupported;
    case EPERM:
    case EACCES:
    case EROFS:
      return Errc::permission_denied;
    case EBUSY:
    case EADDRINUSE:
    case ETXTBSY:
      return Errc::busy;
    case EAGAIN:
    case EINTR:
      return Errc::again;
    case ETIMEDOUT:
    case ETIME:
      return Errc::timed_out;
    case ECANCELED:
      return Errc::cancelled;
    case ENOMEM:
    case EMFILE:
    case ENFILE:
    case ENOSPC:
    case EDQUOT:
    case ENOBUFS:
      return Errc::no_memory;
    case ESRCH:
    case ECHILD:
    case EPIPE:
    case ECONNRESET:
    case ECONNREFUSED:
    case ENOTCONN:
      return Errc::gone;
    case EPROTO:
    case EBADMSG:
    case EMSGSIZE:
      return Errc::protocol;
    default:
      return Errc::io;
  }
}

}  // namespace

std::string_view to_string(Errc code) noexcept {
  switch (code) {
    case Errc::invalid_argument:
      return "invalid_argument";
    case Errc::not_found:
      return "not_found";
    case Errc::already_exists:
      return "already_exists";
    case Errc::out_of_range:
      return "out_of_range";
    case Errc::unsupported:
      return "unsupported";
    case Errc::permission_denied:
      return "permission_denied";
    case Errc::busy:
      return "busy";
    case Errc::again:
      return "again";
    case Errc::timed_out:
      return "timed_out";
    case Errc::cancelled:
      return "cancelled";
    case Errc::no_memory:
      return "no_memory";
    case Errc::io:
      return "io";
    case Errc::gone:
      return "gone";
    case Errc::protocol:
      return "protocol";
  }
  return "unknown";
}

Error Error::from_errno(int sys_errno, std::string_view what) {
  // strerrordesc_np is a table look-up: unlike strerror it is safe in every thread and knows no locale.
  const char* description = strerrordesc_np(sys_errno);
  std::string context(what);
  context += ": ";
  context += description != nullptr ? std::string(description) : "errno " + std::to_string(sys_errno);
  return Error(code_of(sys_errno), std::move(context), sys_errno);
}

Error Error::within(std::string_view outer) const {
  std::string context(outer);
  if (!context_.empty()) {
    context += ": ";
    context += context_;
  }
  return Error(code_, std::move(context), sys_errno_);
}

std::string Error::message() const {
  const std::string_view name = to_string(code_);
  if (!context_.empty()) return context_ + " (" + std::string(name) + ")";
  std::string text(name);
  if (const char* description = sys_errno_ != 0 ? strerrordesc_np(sys_errno_) : nullptr; description != nullptr) {
    text += ": ";
    text += description;
  }
  return text;
}

}  // namespace uffda
