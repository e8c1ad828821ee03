/* Little-endian integers at any alignment. */
#pragma once
#include <endian.h>
#include <stdint.h>
#include <string.h>

#define LE_DEFINE_(bits)                                                                           \
	static inline void le_put##bits(void *p, uint##bits##_t v)                                 \
	{                                                                                          \
		v = htole##bits(v);                                                                \
		memcpy(p, &v, sizeof(v));                                                          \
	}                                                                                          \
	static inline uint##bits##_t le_get##bits(const void *p)                                   \
	{                                                                                          \
		uint##bits##_t v;                                                                  \
		memcpy(&v, p, sizeof(v));                                                          \
		return le##bits##toh(v);                                                           \
	}
LE_DEFINE_(16)
LE_DEFINE_(32)
LE_DEFINE_(64)
#undef LE_DEFINE_
