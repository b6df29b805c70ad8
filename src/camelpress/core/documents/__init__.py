"""Readers of conversations and texts; scripts import `read_documents` from here."""

from camelpress.core.documents.document_reader import read_documents

__all__ = ["read_documents"]
