//! Access control lists, as far as they are only read.

use kafka_protocol::messages::DescribeAclsRequest;
use kafka_protocol::protocol::StrBytes;

use crate::client::Client;
use crate::error::{BrokerError, Error};

/// What is in a cluster; the numbers of the enums are the protocol's.
const ANY: i8 = 1;

/// Which resources are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceFilter {
    /// Its type's number.
    pub kind: i8,
    /// Its name; `None`: of any.
    pub name: Option<String>,
    /// The number of the type of its pattern.
    pub pattern: i8,
}

impl ResourceFilter {
    /// All resources.
    #[must_use]
    pub fn any() -> Self {
        Self { kind: ANY, name: None, pattern: ANY }
    }
}

/// A resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AclResource {
    /// Its type's number.
    pub kind: i8,
    /// Its name.
    pub name: String,
    /// The number of the type of its pattern.
    pub pattern: i8,
}

/// Who may, or may not, do what.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AccessControlEntry {
    /// Who, as in `User:alice`.
    pub principal: String,
    /// From where.
    pub host: String,
    /// The operation's number.
    pub operation: i8,
    /// The number of whether it is denied or allowed.
    pub permission: i8,
}

impl Client {
    /// The access control entries of the resources that fit `filter`.
    ///
    /// # Errors
    /// `SECURITY_DISABLED` from a broker without an authorizer; when none answers in time.
    pub async fn describe_acls(
        &self,
        filter: &ResourceFilter,
    ) -> Result<Vec<(AclResource, Vec<AccessControlEntry>)>, Error> {
        let request = DescribeAclsRequest::default()
            .with_resource_type_filter(filter.kind)
            .with_resource_name_filter(filter.name.clone().map(StrBytes::from_string))
            .with_pattern_type_filter(filter.pattern)
            .with_operation(ANY)
            .with_permission_type(ANY);
        let response = self.call_any(&request, i16::MAX, self.api_deadline()).await?;
        let message = response.error_message.as_ref().map(ToString::to_string);
        BrokerError::check(response.error_code, message.as_deref())?;
        let resources = response.resources.iter().map(|resource| {
            let entries = resource.acls.iter().map(|entry| AccessControlEntry {
                principal: entry.principal.to_string(),
                host: entry.host.to_string(),
                operation: entry.operation,
                permission: entry.permission_type,
            });
            let name = AclResource {
                kind: resource.resource_type,
                name: resource.resource_name.to_string(),
                pattern: resource.pattern_type,
            };
            (name, entries.collect())
        });
        Ok(resources.collect())
    }
}
