/* SPDX-License-Identifier: MIT */
/* Names of things, and the version. */
#include "wharf.h"

#define STRING(x) #x
#define VERSION(major, minor, patch) STRING(major) "." STRING(minor) "." STRING(patch)

const char *wharf_version(void)
{
	return VERSION(WHARF_VERSION_MAJOR, WHARF_VERSION_MINOR, WHARF_VERSION_PATCH);
}

const char *wharf_close_name(uint32_t code)
{
	switch (code) {
	case WHARF_CLOSE_LOCAL: return "closed here";
	case WHARF_CLOSE_PEER: return "closed by the peer";
	case WHARF_CLOSE_ABORTED: return "aborted here";
	case WHARF_CLOSE_PEER_ABORTED: return "aborted by the peer";
	case WHARF_CLOSE_PEER_GONE: return "peer gone";
	case WHARF_CLOSE_VIOLATION: return "protocol violation";
	case WHARF_CLOSE_PEER_REFUSED: return "refused by the peer";
	case WHARF_CLOSE_MISMATCH: return "version or feature mismatch";
	case WHARF_CLOSE_TIMEOUT: return "timeout";
	case WHARF_CLOSE_ERROR: return "system error";
	case WHARF_CLOSE_LOOP_FREED: return "loop freed";
	case WHARF_CLOSE_REFUSED: return "peer refused";
	default: return "unknown";
	}
}

const char *wharf_end_name(uint32_t reason)
{
	switch (reason) {
	case WHARF_END_LAST: return "answered";
	case WHARF_END_DEADLINE: return "deadline";
	case WHARF_END_CANCEL: return "cancelled";
	case WHARF_END_PEER_GONE: return "peer gone";
	case WHARF_END_CLOSED: return "closed";
	case WHARF_END_NO_REPLY: return "no reply";
	case WHARF_END_REFUSED: return "refused";
	case WHARF_END_ERROR: return "system error";
	default: return "unknown";
	}
}
