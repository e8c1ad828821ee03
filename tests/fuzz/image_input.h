/* The input of fuzz_image: the files of an image directory, one after the other.
 *
 *   u8  how: IN_RECEIVE: as a receiver goes on from it, else as a reader; IN_MEND
 *   then for each file
 *   u8  which: 0 manifest, 1 tree, 2+N index-N; IN_RAW: the file as it is, else its payload, which
 *       gets a right header and digest
 *   u16 length, little-endian; the bytes
 *
 * IN_MEND: the manifest gets the sizes and digests that the other files have, so that what is
 * behind those checks is reached too. */
#pragma once

enum { IN_RECEIVE = 1, IN_MEND = 2, IN_RAW = 0x80 };
enum { IN_MANIFEST, IN_TREE, IN_INDEX, IN_INDEX_MAX = 8 };
