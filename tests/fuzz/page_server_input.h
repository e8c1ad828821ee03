/* The input of fuzz_page_server: steps, one after the other.
 *
 *   u8 step, u8 connection, u16 length (little-endian), the bytes
 *
 * Connections are numbers below DO_CONNECTIONS; one that is not open is opened by what it is used
 * for. */
#pragma once

enum { DO_CONNECTIONS = 4, DO_CONTROLS = 2 };
enum page_server_step {
	DO_RAW,          /* the bytes */
	DO_FRAME,        /* a peer link's frame: the length, then the bytes, a message */
	DO_PEER_HELLO,   /* a right one */
	DO_STREAM_HELLO, /* likewise, of a page stream */
	DO_BATCH,        /* runs of 4 bytes: kind, page (2), number of pages; first byte: target */
	DO_FLUSH,
	DO_CLOSE,
	DO_CONTROL,         /* a packet on a control connection, and a descriptor if it is odd */
	DO_CONTROL_SESSION, /* a right request for a session */
	DO_CONTROL_CLOSE,
	DO_STEPS,
};
