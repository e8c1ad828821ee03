/* What goes over a connection on which the destination fetches pages (proto/PAGES.md, "Fetching").
 *
 * Frames both ways, each a header of LAZY_HDR_BYTES and its payload. A connection begins as a peer
 * link (HELLO, LAZY, OK); the first frame on it is the source's START.
 *
 *   source -> destination   START; CLEAN…, TOLD; PAGES, ZEROS, UNREADABLE, UNCHANGED; BYE
 *   destination -> source   MISSING…, MISSING_END, WANT…, COMPLETE (on the urgent connection)
 *
 * A connection carries all that the source has to know: what is missing. So a broken one is
 * replaced by another, and a source process by another. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include "base/err.h"

enum {
	LAZY_HDR_BYTES = 40,
	LAZY_PAGES_MAX = 64,    /* of a PAGES, ZEROS or UNREADABLE */
	LAZY_WANT_MAX = 512,    /* a huge page; more than 64 only where huge pages stay behind */
	LAZY_CHUNKS_MAX = 1024, /* of a MISSING or CLEAN */
	LAZY_CHUNK_BYTES = 72,  /* address, and a bit for each of the 512 pages from there */
	LAZY_CHUNK_SPAN = 512 * 4096,
	LAZY_STATS_BYTES = 10 * 8,
	LAZY_PAYLOAD_MAX = LAZY_PAGES_MAX * 4096,
	LAZY_BULK_MAX = 4, /* connections on which pages are pushed */
	/* shared memory: its index plus this in the place of a pid; addresses are offsets */
	LAZY_OBJECT = 1 << 24,
};

enum lazy_type {
	LAZY_START = 1,   /* npages 1: TOLD will come */
	LAZY_MISSING,     /* payload: npages chunks of process pid */
	LAZY_MISSING_END, /* that was all: push */
	LAZY_WANT,        /* npages pages of pid at addr, now */
	LAZY_PAGES,       /* payload: their contents; digest: XXH3-64 of it */
	LAZY_ZEROS,       /* they hold nothing but zeros, or are not there */
	LAZY_UNREADABLE,  /* the source itself cannot read them */
	LAZY_COMPLETE,    /* nothing is missing any more; payload: numbers, lazy_stats */
	LAZY_BYE,         /* understood: the source ends its tasks */
	LAZY_UNCHANGED,   /* of shared memory: as they were sent before */
	/* After MISSING_END: what of shared memory is known to be as it was sent; until all of that
	 * is told, no shared memory is asked for. */
	LAZY_CLEAN, /* payload: npages chunks of it; digest: XXH3-64 of the payload */
	LAZY_TOLD,
};

struct lazy_frame {
	enum lazy_type type;
	pid_t pid;
	uint32_t npages;
	uint64_t addr;
	uint64_t digest;
	uint32_t payload; /* bytes that follow */
};

struct lazy_chunk {
	uint64_t start; /* multiple of 2 MiB */
	uint64_t bits[8];
};

void lazy_frame_encode(uint8_t out[LAZY_HDR_BYTES], const struct lazy_frame *f);
/* Checks all that can be checked without the payload. Errors: PEER. */
int lazy_frame_decode(struct lazy_frame *ret, const uint8_t in[LAZY_HDR_BYTES],
		      struct cr_err *err) must_check;

void lazy_chunk_encode(uint8_t out[LAZY_CHUNK_BYTES], const struct lazy_chunk *c);
int lazy_chunk_decode(struct lazy_chunk *ret, const uint8_t in[LAZY_CHUNK_BYTES],
		      struct cr_err *err) must_check;

uint64_t lazy_digest(const void *payload, size_t bytes);
/* Is the payload what was sent? */
bool lazy_frame_intact(const struct lazy_frame *f, const void *payload);
struct msg_postcopy;
/* The payload of COMPLETE. */
void lazy_stats_encode(uint8_t out[LAZY_STATS_BYTES], const struct msg_postcopy *p);
void lazy_stats_decode(struct msg_postcopy *ret, const uint8_t in[LAZY_STATS_BYTES]);
